"""Checksums of the files of an artifact: `manifest.json`, verification, and reading of verified files."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sftmix.artifacts.files import PARTIAL, sync, write_json
from sftmix.artifacts.hashes import checksum, fingerprint, is_intact, sealed
from sftmix.errors import InputError
from sftmix.quoting import shell_command

MANIFEST = "manifest.json"
CHECKSUM = "xxh3_128"  # Detects damage, at several GB/s. Names of artifacts contain a SHA-256 instead
EVALUATION = "evaluation"
UNSEALED = ("states", "wandb", EVALUATION)  # Folders that are removed or written after an artifact is complete
READ_SUFFIXES = {".arrow", ".parquet", ".json", ".safetensors", ".bin", ".pt", ".model", ".jinja", ".txt"}
VERIFIED = "SFTMIX_VERIFIED"  # Environment variable: what the parent process has verified
SUMS = ".sums.json"
FINGERPRINTED = re.compile(r"-[0-9a-f]{8}$")
WRONG_CHECKSUM = "is damaged: its content does not match its checksum"


def entry_of(path: Path) -> dict[str, Any]:
    """Return the size and the checksum of a file, as a manifest lists them."""
    return {"bytes": path.stat().st_size, CHECKSUM: checksum(path)}


def differs(path: Path, entry: Any) -> str:
    """Return how a file differs from its entry in a manifest; an empty text if it does not."""
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"has {size} bytes, expected {entry['bytes']}"
        return "" if checksum(path) == entry[CHECKSUM] else WRONG_CHECKSUM
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (TypeError, KeyError):
        return "has no checksum"


def _check(path: Path, entry: Any) -> None:
    """Raise an InputError if a file differs from its entry in a manifest."""
    if why := differs(path, entry):
        raise damaged(path, why)


def seal(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of an artifact: its title, fingerprint and fields, and size and checksum of every file."""
    files = {
        name: entry_of(path)
        for path in sorted(folder.rglob("*"))
        if (name := path.relative_to(folder).as_posix()) != MANIFEST and _is_sealable(path, name)
    }
    write_json(folder / MANIFEST, sealed({**content, "files": files}))
    sync(folder)


def _is_sealable(path: Path, name: str) -> bool:
    return path.is_file() and not path.is_symlink() and name.split("/")[0] not in UNSEALED


def seal_part(folder: Path) -> None:
    """Write the checksums of a subfolder of an unfinished artifact, such as a checkpoint, beside the subfolder."""
    files = {path.relative_to(folder).as_posix(): entry_of(path) for path in folder.rglob("*") if path.is_file()}
    write_json(_sums_of(folder), sealed({"files": files}))


def unseal_part(folder: Path) -> None:
    """Remove the checksums of a subfolder that is about to be written again."""
    _sums_of(folder).unlink(missing_ok=True)


def _sums_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}{SUMS}")


def check_sums(partial: Path, *, keep: bool = False) -> None:
    """Compare the sealed subfolders of an unfinished artifact with their checksums.

    If `keep=False`, the checksum files are removed, since the manifest of the complete artifact replaces them.

    Raises:
        InputError: If a file differs.
    """
    sums = sorted(partial.rglob(f".*{SUMS}"))
    for file in sums:
        content = parse_json(file)
        if not is_intact(content):
            raise damaged(file, WRONG_CHECKSUM)
        for name, entry in content["files"].items():
            _check(file.with_name(file.name[1 : -len(SUMS)]) / name, entry)
    for file in () if keep else sums:
        file.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artifact or of a sweep, without its own checksum. Only artifacts have checksums.

    Raises:
        InputError: If the manifest is damaged.
    """
    file = folder / MANIFEST
    content = parse_json(file)
    if not isinstance(content, dict):
        raise damaged(file, "is damaged: expected a JSON object")
    if ("files" in content or "checksum" in content) and not is_intact(content):
        raise damaged(file, WRONG_CHECKSUM)
    content.pop("checksum", None)
    return content


def verify(folder: Path, part: str = "") -> None:
    """Compare the files of an artifact, or of its subfolder `part`, with the checksums in its manifest.

    Files are compared once per run: files that the parent process has verified are not verified again.

    Raises:
        InputError: If a file is missing or damaged, or does not belong to the artifact.
    """
    key = _key(folder, part)
    parent, _, keys = os.environ.get(VERIFIED, "").partition(":")
    if key in _verified or (parent == str(os.getppid()) and key in keys.split(",")):
        return
    files = read_manifest(folder).get("files")
    if files is None:
        raise damaged(folder / MANIFEST, "lists no files")
    prefix = f"{part}/" if part else ""
    for name, entry in files.items():
        if name.startswith(prefix):
            _check(folder / name, entry)
    for path in sorted((folder / part).rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_hidden = any(word.startswith(".") for word in name.split("/"))
        is_read = name != MANIFEST and path.suffix in READ_SUFFIXES and _is_sealable(path, name)
        if is_read and name not in files and not is_hidden:
            raise InputError(f"{path}: not a file of the artifact {folder.name}; remove it")
    remember_verified(folder, part)


def verify_inside(path: Path) -> None:
    """Verify a file or a folder of files, such as a checkpoint, if it is inside an artifact of this program.

    Raises:
        InputError: As `verify`.
    """
    path = path.resolve()
    if _is_artifact(path):
        verify(path)
    elif not path.is_dir():
        verify_file(path)
    elif (folder := _artifact_above(path)) is not None:
        verify(folder, path.relative_to(folder).as_posix())


def forget_verified() -> None:
    """Forget which files an earlier run of this process has verified, so that a new run verifies them again."""
    _verified.clear()
    os.environ.pop(VERIFIED, None)


_verified: set[str] = set()


def _key(folder: Path, part: str) -> str:
    return fingerprint({"folder": os.fsencode(folder.resolve()).hex(), "part": part})


def remember_verified(folder: Path, part: str = "") -> None:
    """Count an artifact or its subfolder as verified, in this process and its children."""
    _verified.add(_key(folder, part))
    os.environ[VERIFIED] = f"{os.getpid()}:{','.join(sorted(_verified))}"


def _artifact_above(path: Path) -> Path | None:
    """Return the artifact that contains a file at a depth of at most three, or None."""
    return next((folder for folder in list(path.parents)[:3] if _is_artifact(folder)), None)


def _is_artifact(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    if FINGERPRINTED.search(folder.name):
        return True
    with suppress(OSError, ValueError):
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return isinstance(content, dict) and "fingerprint" in content
    return False


def verify_file(path: Path) -> None:
    """Compare a file with its checksum, if the file is inside an artifact whose manifest lists it."""
    folder = _artifact_above(path)
    if folder is not None and path != folder / MANIFEST:
        entry = (read_manifest(folder).get("files") or {}).get(path.relative_to(folder).as_posix())
        if entry is not None:
            _check(path, entry)


def damaged(file: Path, why: str) -> InputError:
    """Return the error for a damaged file in one line: what is wrong, and the command that makes the file again."""
    return InputError(f"{file}: {why}{_remedy(file)}")


def _remedy(file: Path) -> str:
    if file.parent.name == EVALUATION:
        return "; delete this file and run the suite again"
    partial = next((folder for folder in file.parents if folder.name.endswith(PARTIAL)), None)
    if partial is not None:
        return f"; delete {partial} and run the same command again"
    folder = file.parent if file.name == MANIFEST else _artifact_above(file)
    if folder is None or folder.parent.name == "sweeps" or not FINGERPRINTED.search(folder.name):
        return ""
    command = _command_of(folder)
    return f"; delete {folder} and run {f'`{command}`' if command else 'the train.py command that made it'} again"


def _command_of(folder: Path) -> str | None:
    """Return the command that makes an artifact again in its current root, if its `run.json` can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        words = json.loads((folder / "run.json").read_text(encoding="utf-8"))["command"]
        roots = [word.removeprefix("root=") for word in words if word.startswith("root=")]
        if roots and Path(roots[-1]).resolve() != folder.parent.resolve():  # moved or copied since
            words = [word for word in words if not word.startswith("root=")] + [f"root={folder.parent}"]
        return shell_command(["python", *words])
    return None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. A file of an artifact is compared with its checksum.

    Raises:
        InputError: If the file is damaged or not JSON.
        OSError: If the file cannot be read.
    """
    if path.name == MANIFEST:
        return read_manifest(path.parent)
    verify_file(path)
    return parse_json(path)


def parse_json(path: Path) -> Any:
    """Return the content of a JSON file without a comparison with its checksum.

    Raises:
        InputError: If the file is not JSON.
        OSError: If the file cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        what = "is empty" if path.stat().st_size == 0 else f"is not JSON ({error})"
        raise damaged(path, f"{what}, expected a JSON file") from None
