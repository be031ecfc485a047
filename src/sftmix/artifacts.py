"""The files that pass between stages: found by fingerprint, written aside, complete or absent.

An artifact is a folder `<readable name>-<8 hex of the fingerprint>`. What the fingerprint covers stands in its
`manifest.json`. While it is made it is called `<name>.partial`; it gets its name when everything is on the disk.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sftmix.errors import InputError

MANIFEST = "manifest.json"
CONFIDENCE_COLUMNS = ("example_id", "checkpoint", "num_tokens", "nll")


def fingerprint(fields: Mapping[str, Any]) -> str:
    """The first 8 hexadecimal digits of the hash of resolved fields, whatever their order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Artifact:
    """A folder that a stage writes and others read.

    Attributes:
        root: the folder of all artifacts.
        title: the readable part of its name.
        fields: everything that its content depends on.
    """

    root: Path
    title: str
    fields: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """The hash of its fields."""
        return fingerprint(self.fields)

    @property
    def folder(self) -> Path:
        """Where it is, once it is complete."""
        title = re.sub(r"[^A-Za-z0-9._-]+", "_", self.title)
        return self.root / f"{title}-{self.fingerprint}"

    @property
    def partial(self) -> Path:
        """Where it is while it is made."""
        return self.folder.with_name(self.folder.name + ".partial")

    @property
    def is_complete(self) -> bool:
        """Whether it is there."""
        return (self.folder / MANIFEST).is_file()


def complete_folders(root: Path, pattern: str = "*") -> list[Path]:
    """Return the complete artifacts under a root, by name: not what is being made or replaced.

    Args:
        root: folder of all artifacts.
        pattern: of their names.
    """
    files = sorted(root.glob(f"{pattern}/{MANIFEST}"))
    return [file.parent for file in files if file.parent.suffix not in (".partial", ".old")]


def folder_of(given: str, root: Path, key: str) -> Path:
    """The folder that a path means, or a name under a root.

    Raises:
        InputError: there is none.
    """
    for folder in (Path(os.path.expanduser(given)), root / given):
        if folder.is_dir():
            return folder.resolve()
    raise InputError(f"{key}={given}: no such folder, nor one of that name in {root}")


@contextmanager
def making(
    artifact: Artifact, *, resume: bool = False, usable: Callable[[Path], bool] = lambda _: True
) -> Iterator[Path | None]:
    """Make an artifact: yields the folder to write into, or None where another process has made it meanwhile.

    Two processes that want the same artifact: one makes it, the other waits. The folder gets its name at the end; an
    exception leaves it aside, incomplete.

    Args:
        artifact: what is made.
        resume: keep what an earlier, unfinished attempt has left.
        usable: whether what is there will do; else it is made again and put in the old one's place.
    """
    artifact.root.mkdir(parents=True, exist_ok=True)
    partial = artifact.partial
    with _locked(artifact):
        if artifact.is_complete and usable(artifact.folder):
            yield None
            return
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        yield partial
        manifest = {
            "title": artifact.title,
            "fingerprint": artifact.fingerprint,
            "completed": datetime.now(UTC).isoformat(timespec="seconds"),
            "fields": artifact.fields,
        }
        write_json(partial / MANIFEST, manifest)
        sync_folder(partial)
        old = artifact.folder.with_name(artifact.folder.name + ".old")
        if artifact.folder.exists():
            artifact.folder.rename(old)
        partial.rename(artifact.folder)
        _sync(artifact.root)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(artifact: Artifact) -> Iterator[None]:
    lock = artifact.root / ".locks" / f"{artifact.folder.name}.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is making {artifact.folder.name}: waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sync_folder(folder: Path) -> None:
    """See to it that a folder and everything in it is on the disk."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def content_hash(path: Path, cache: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """The SHA-256 of a file's bytes, or of a folder's files of the given patterns with their names.

    Args:
        path: file or folder.
        cache: a JSON file that remembers hashes by path, size and time.
        patterns: which files of a folder count.
    """
    if path.is_dir():
        files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
        parts = [f"{file.name}:{content_hash(file, cache)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    known = read_json(cache) if cache.is_file() else {}
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, known)
    return known[key]


def write_json(path: Path, content: Any, mode: int | None = None) -> None:
    """Write a JSON file as a whole or not at all, with the permissions `mode` if they are given."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"), mode)  # half a character is escaped as JSON does it


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file as a whole or not at all, also where another process writes it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    if mode is not None:
        aside.touch(mode)
    aside.write_bytes(content)
    _sync(aside)
    aside.replace(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length as a parquet file, as a whole or not at all."""
    write_parts(path, [columns])


def write_parts(path: Path, parts: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of one part after the other as a parquet file, as a whole or not at all; parts are alike."""
    import pyarrow
    from pyarrow import parquet

    aside = path.with_name(f".{path.name}.{os.getpid()}")
    writer = None
    for part in parts:
        table = pyarrow.table(dict(part))
        writer = writer or parquet.ParquetWriter(aside, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()
    _sync(aside)
    aside.replace(path)


def read_table(path: Path) -> dict[str, list[Any]]:
    """The columns of a parquet file.

    Raises:
        InputError: it is no parquet file.
    """
    return _read_parquet(path).to_pydict()


def _read_parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: no parquet file ({str(error).splitlines()[0]})") from None


def read_confidence(path: Path) -> Any:
    """The Arrow table of columns `example_id, checkpoint, num_tokens, nll` (nats) of a confidence file.

    Raises:
        InputError: it is missing, no parquet file, or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"confidence.path={path}: no such file")
    table = _read_parquet(path)
    lacking = [name for name in CONFIDENCE_COLUMNS if name not in table.column_names]
    if lacking:
        raise InputError(f"{path}: no column {', '.join(lacking)}; found {', '.join(table.column_names)}")
    return table
