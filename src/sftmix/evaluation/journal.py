"""A file of one record a line, appended and never rewritten: what was paid for is not lost and not asked again."""

import fcntl
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sftmix.errors import InputError


class Journal:
    """Records by key. A line that a killed process left half is cut off before anything is appended.

    Args:
        file: where they stand, one JSON object a line with its `key`.
        handle: that file, open for reading and writing.

    Raises:
        InputError: a line that is not the last holds no record.
    """

    def __init__(self, file: Path, handle: IO[bytes]) -> None:
        """Read what is there."""
        self.file, self._handle = file, handle
        self._records: dict[str, dict[str, Any]] = {}
        content = handle.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            handle.truncate(end)
        handle.seek(end)
        for number, line in enumerate(content[:end].splitlines(), start=1):
            try:
                record = json.loads(line)
                self._records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{file}, line {number}: holds no record, expected a JSON object with a key") from None

    def __contains__(self, key: str) -> bool:
        """Whether there is a record of this key."""
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        """The record of a key; of several the last."""
        return self._records[key]

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The records in the order in which their keys were first written."""
        return iter(self._records.values())

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Write a record; when this returns, the system has it, and a killed process does not lose it."""
        record = {"key": key, **record}
        self._handle.write(json.dumps(record).encode() + b"\n")  # ASCII: half a character has a form too
        self._handle.flush()
        self._records[key] = record

    def sync(self) -> None:
        """See to it that all of it is on the disk."""
        os.fsync(self._handle.fileno())


@contextmanager
def open_journal(file: Path) -> Iterator[Journal]:
    """The journal of a file, for this process alone.

    Raises:
        InputError: another process has it open, or it cannot be read.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as handle:
        lock(handle, file)
        handle.seek(0)
        journal = Journal(file, handle)
        try:
            yield journal
        finally:
            journal.sync()


def read_journal(file: Path) -> Journal:
    """What a journal holds now, to be read; another process may write it meanwhile.

    Raises:
        InputError: it cannot be read.
    """
    return Journal(file, io.BytesIO(file.read_bytes() if file.is_file() else b""))


def lock(handle: IO[Any], file: Path) -> None:
    """Take a file for this process alone, until it is closed.

    Raises:
        InputError: another process has it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{file}: another evaluation is writing it, wait for its end") from None
