"""Where the published question files are: in a folder that was given, or fetched once and kept."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from sftmix.artifacts.files import write_bytes
from sftmix.errors import InputError

WAIT_SECONDS = 30.0


class Published(NamedTuple):
    """A file that somebody else publishes.

    Attributes:
        name: its name in a folder of such files.
        url: where it is fetched from.
        sha256: of its content, where it is pinned; None: its place names a commit.
    """

    name: str
    url: str
    sha256: str | None = None


def locate(file: Published, bench: Path | None, cache: Path) -> Path:
    """The path of a published file: in the given folder, else fetched into a cache, once.

    Args:
        file: which.
        bench: folder with the published files, or None.
        cache: folder of what was fetched.

    Raises:
        InputError: it is not in the folder, cannot be fetched, or is not what it was.
    """
    if bench is not None:
        if not (bench / file.name).is_file():
            raise InputError(f"bench={bench}: no {file.name} in it (published at {file.url})")
        return bench / file.name
    kept = cache / file.name
    if kept.is_file() and _is_as_fetched(kept, file):
        return kept
    try:
        with urllib.request.urlopen(file.url, timeout=WAIT_SECONDS) as response:
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        cause = getattr(error, "reason", error)
        raise InputError(
            f"{file.name}: could not be fetched from {file.url} ({cause}); give a folder that has it by bench=FOLDER"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if file.sha256 is not None and found != file.sha256:
        raise InputError(f"{file.name}: {file.url} gives other content than it did (sha256 {found[:16]}...)")
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(kept, content)
    write_bytes(_note_of(kept), f"{found}\n".encode())
    return kept


def _is_as_fetched(kept: Path, file: Published) -> bool:
    """Whether the bytes of a cached file are those that were fetched; a file that is damaged is fetched again."""
    note = _note_of(kept)
    expected = file.sha256 or (note.read_text(errors="replace").strip() if note.is_file() else None)
    return expected is None or hashlib.sha256(kept.read_bytes()).hexdigest() == expected


def _note_of(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.sha256")
