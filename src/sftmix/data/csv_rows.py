"""Read the rows of CSV and TSV files, with a limit on the size of a row."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sftmix.data import rows
from sftmix.data.rows import MIB, Row, check_columns, num_bytes, too_large
from sftmix.errors import InputError
from sftmix.terminal import counted

DELIMITERS = ",;\t|"


def read_csv(path: Path, handle: IO[bytes], delimiters: str, limit: int) -> Iterator[Row]:
    """Yield the rows below the header, which is the first line that is not empty.

    Args:
        delimiters: Characters that may separate fields. The one that divides the header into most names is taken.
        limit: Maximum size of a row in bytes.

    Raises:
        InputError: If the header is too large or names a column twice, or if the file is not CSV.
    """
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    try:
        first = "\n"
        while first and not first.strip("\r\n"):
            first = text.readline(limit + 1)
        if num_bytes(first.rstrip("\r\n")) > limit:
            raise InputError(f"{path}: the first line has over {limit / MIB:.3g} MiB, expected a header")
        text.seek(0)
        delimiter = max(delimiters, key=lambda d: len(next(csv.reader([first], delimiter=d), [])))
        records = _records(path, _RecordLines(text, limit), delimiter)
        at, header = next(records, (1, []))
        if header is None:
            raise InputError(f"{path}, line {at}: the header has over {limit / MIB:.3g} MiB")
        check_columns(f"{path}, line {at}", header)
        for number, (line, values) in enumerate(records, start=1):
            where = f"{path}, line {line}"
            if values is None:
                yield too_large(where, number, limit)
                continue
            problem = f"{counted(len(values), 'field')} for {counted(len(header), 'column')}"
            fields = dict(zip(header, values, strict=False))
            yield Row(where, number, fields, problem=problem if len(values) != len(header) else "")
    finally:
        text.detach()  # the caller closes the file


class _RowTooLarge(Exception):
    """A record of a CSV file is larger than the limit. The reader is at the next record."""


class _RecordLines:
    """The lines of a CSV file for `csv.reader`, with a limit on the size of a record.

    If the limit divides a line end of two characters, the second character is a line that is not counted.
    """

    def __init__(self, text: io.TextIOWrapper, limit: int) -> None:
        self.text, self.limit = text, limit
        self.number, self.last = 0, ""  # lines that were read; last character
        self.begin()

    def begin(self) -> None:
        self.size, self.is_quoted = 0, False

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        line = self._read(self.limit + 1)
        if not line:
            raise StopIteration
        self.size += num_bytes(line.rstrip("\r\n"))
        if self.size > self.limit:
            while line and (self.is_quoted or line[-1] not in "\r\n"):
                line = self._read(rows.CHUNK_BYTES)
            raise _RowTooLarge
        return line

    def _read(self, size: int) -> str:
        """Return the next line, or its next `size` characters, and note where the reader is."""
        line = self.text.readline(size)
        is_continued = self.last not in ("", "\r", "\n") or (self.last == "\r" and line == "\n")
        self.number += bool(line) and not is_continued
        self.is_quoted ^= line.count('"') % 2 == 1
        self.last = line[-1:]
        return line


def _records(path: Path, lines: _RecordLines, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Yield the first line and the values of each record that is not empty; None for a record that is too large."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = lines.number + 1
        lines.begin()
        try:
            values = next(reader, None)
        except _RowTooLarge:
            yield line, None
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        except csv.Error as error:
            cause = "a quote that opens in this row is not closed" if "end of data" in str(error) else error
            raise InputError(f"{path}, line {line}: not CSV ({cause})") from None
        if values is None:
            return
        if values:
            yield line, values
