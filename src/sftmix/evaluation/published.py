"""Find published question files in a folder, or fetch them once; read their rows."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from sftmix.artifacts.files import write_bytes
from sftmix.data.files import KINDS, is_data_file
from sftmix.data.rows import Row
from sftmix.data.sources import read_file
from sftmix.errors import InputError
from sftmix.terminal import one_line

WAIT_SECONDS = 30.0


class Published(NamedTuple):
    """A published file."""

    name: str  # Name in a folder of such files, and in the cache
    url: str
    sha256: str | None = None  # Hash of the content; None if the address names a commit
    also: tuple[str, ...] = ()  # Other names that the file may have in a folder


def locate(file: Published, bench: Path | None, cache: Path) -> Path:
    """Return the path of a published file in the folder `bench`. If `bench` is None, fetch the file into `cache` once.

    Raises:
        InputError: If the file is not in the folder, cannot be fetched, or its content has changed.
    """
    if bench is not None:
        found = next((bench / name for name in (file.name, *file.also) if (bench / name).is_file()), None)
        if found is None:
            raise InputError(f"bench={bench}: {file.name} is not in this folder (published at {file.url})")
        return found
    kept = cache / file.name
    note = kept.with_name(f".{kept.name}.sha256")
    if kept.is_file():  # a damaged file is fetched again
        expected = file.sha256 or (note.read_text(errors="replace").strip() if note.is_file() else None)
        if expected is None or hashlib.sha256(kept.read_bytes()).hexdigest() == expected:
            return kept
    try:
        with urllib.request.urlopen(file.url, timeout=WAIT_SECONDS) as response:
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        cause = getattr(error, "reason", error)
        raise InputError(
            f"{file.name}: could not be fetched from {file.url} ({cause}); bench=FOLDER names a folder that has it"
        ) from None
    fetched = hashlib.sha256(content).hexdigest()
    if file.sha256 is not None and fetched != file.sha256:
        raise InputError(f"{file.name}: the content of {file.url} has changed (sha256 {fetched[:16]}...)")
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(kept, content)
    write_bytes(note, f"{fetched}\n".encode())
    return kept


def read_records(file: Path) -> list[Row]:
    """Return the rows of a file of objects: JSON lines, a JSON array, or a CSV table.

    Raises:
        InputError: If the file cannot be read, has no rows, or a row is not an object.
    """
    if not file.exists():
        raise InputError(f"{file}: cannot be read (No such file)")
    if file.is_dir() or not is_data_file(file):
        raise InputError(f"{file}: cannot be read, expected a file of {', '.join(KINDS)}")
    rows = list(read_file(file))
    for row in rows:
        if row.problem:
            raise InputError(f"{row.where}: {row.problem}")
        if not isinstance(row.fields, dict):
            raise InputError(f"{row.where}: {one_line(row.fields)[:60]}, expected a JSON object")
    return rows
