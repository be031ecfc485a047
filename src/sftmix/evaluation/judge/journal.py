"""A journal: a file of one record per line that is only appended to, so that no reply is lost or paid for twice."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sftmix.artifacts.files import try_lock
from sftmix.errors import InputError

PRIVATE = 0o600  # journals hold questions and answers
Check = Callable[[Mapping[str, Any]], str | None]
_reported: set[tuple[Path, int]] = set()  # skipped lines that this process has reported


class Journal(dict[str, dict[str, Any]]):
    """Records by key, in the order in which the keys were first written. The last record of a key counts.

    An incomplete last line, left by a killed process, is removed. Another line that is not a record is skipped, so that
    the record is made again. Skipped lines remain in the file and are reported once on stderr.

    Args:
        file: File of JSON lines, each an object with a `key`.
        handle: The file, open for reading and writing.
        check: Returns why a record cannot be read, or None.
    """

    def __init__(self, file: Path, handle: IO[bytes], check: Check | None = None) -> None:
        super().__init__()
        self.file, self._handle = file, handle
        content = handle.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            handle.truncate(end)
        handle.seek(end)
        skipped: list[tuple[int, str]] = []
        for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
            if not line.strip():
                continue
            record, cause = _record(line, check)
            if record is not None:
                self[record["key"]] = record
            elif (file, number) not in _reported:
                skipped.append((number, cause))
        if skipped:
            _reported.update((file, number) for number, _ in skipped)
            number, cause = skipped[0]
            lines = f"line {number} is" if len(skipped) == 1 else f"{len(skipped):,} lines are"
            first = "" if len(skipped) == 1 else f"line {number}: "
            message = f"{lines} not a record and skipped ({first}{cause}); missing records are made again"
            print(f"{file}: {message}", file=sys.stderr, flush=True)

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Write a record. After the return, a killed process does not lose it."""
        record = {"key": key, **record}
        self._handle.write(json.dumps(record).encode() + b"\n")  # ASCII: lone surrogates are escaped too
        self._handle.flush()
        self[key] = record


def _record(line: bytes, check: Check | None) -> tuple[dict[str, Any] | None, str]:
    """Return the record of a line, or None and the reason."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None, "not JSON"
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        return None, "not a JSON object with a key"
    cause = check(record) if check is not None else None
    return (record, "") if cause is None else (None, cause)


@contextmanager
def open_journal(file: Path, check: Check | None = None) -> Iterator[Journal]:
    """Open a journal for this process only, and create its file if needed. Only the owner can read the file.

    Args:
        check: Returns why a record cannot be read, or None.

    Raises:
        InputError: If another process has the file open.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+b", opener=_open_privately) as handle:
        lock(handle, file)
        handle.seek(0)
        try:
            yield Journal(file, handle, check)
        finally:
            os.fsync(handle.fileno())


def read_journal(file: Path, check: Check | None = None) -> Journal:
    """Return the current records of a journal. Another process may write the file at the same time."""
    return Journal(file, io.BytesIO(file.read_bytes() if file.is_file() else b""), check)


def _open_privately(path: str, flags: int) -> int:
    descriptor = os.open(path, flags, PRIVATE)
    with suppress(OSError):  # an older file of another owner, or a file system without modes
        os.fchmod(descriptor, PRIVATE)
    return descriptor


def lock(handle: IO[Any], file: Path) -> None:
    """Lock a file for this process until the file is closed; raise an InputError if another process holds the lock."""
    if not try_lock(handle):
        raise InputError(f"{file}: another evaluation is writing this file, wait until it ends")
