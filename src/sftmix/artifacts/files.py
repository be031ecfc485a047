"""Write files and folders as a whole or not at all, and lock files between processes.

Temporary files are called `.<name>.<process id>`, temporary folders `<name>.partial`. A symbolic link in place of a
file or folder of this program is never followed.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sftmix.errors import InputError

PARTIAL = ".partial"


def open_lock(path: Path) -> IO[Any]:
    """Open a lock file, which is created if it does not exist; raise an InputError if it is a symbolic link."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise linked(path, "file") from None
        raise
    return os.fdopen(handle, "r+")


def try_lock(handle: IO[Any] | int) -> bool:
    """Lock an open file until it is closed. Return False if another process holds the lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path, *, unreadable: bool = False) -> bool:
    """Return whether a process holds the lock of a file; `unreadable` if the file cannot be opened for reading."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return unreadable
    return False


def linked(path: Path, what: str) -> InputError:
    """Return the error for a symbolic link instead of a file or folder of this program."""
    return InputError(f"{path}: a symbolic link, expected a {what} of this program; remove the link")


def remove(path: Path) -> None:
    """Remove a folder, a file, or a symbolic link (never its target), if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder and everything in it to the disk."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder `<name>.partial` that replaces a folder at the end."""
    aside = folder.with_name(f"{folder.name}{PARTIAL}")
    remove(aside)
    aside.mkdir(parents=True)
    yield aside
    remove(folder)
    aside.rename(folder)


@contextmanager
def replacing_file(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """Yield a new temporary file that replaces a file at the end, or is removed after an exception.

    The temporary file is locked while it is written, so that other processes can tell it from the leftover of a killed
    process.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with suppress(OSError):  # a file system without locks
            try_lock(handle)
        yield aside
        sync(aside)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def write_json(path: Path, content: Any, mode: int = 0o666) -> None:
    """Write a JSON file as a whole or not at all, with the permissions `mode`."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"), mode)  # lone surrogates are escaped as JSON does it


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file as a whole or not at all, also if another process writes the same file."""
    with replacing_file(path, mode) as aside:
        aside.write_bytes(content)
