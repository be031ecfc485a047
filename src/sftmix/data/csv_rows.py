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
        lines = _RecordLines(text, limit)
        try:
            first = lines.header()
        except _RowTooLarge:
            raise InputError(f"{path}: the first line has over {limit / MIB:.3g} MiB, expected a header") from None
        delimiter = max(delimiters, key=lambda d: len(next(csv.reader([first], delimiter=d), [])))
        records = _records(path, lines, delimiter)
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
    """The lines of a CSV file for `csv.reader`, with a limit on the size of a record."""

    def __init__(self, text: io.TextIOWrapper, limit: int) -> None:
        self.text, self.limit = text, limit
        self.number, self.pending = 0, ""  # lines that were read; text that is read again
        self.begin()

    def begin(self) -> None:
        self.size, self.is_quoted = 0, False

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        line, self.pending = self.pending, ""
        if not line.endswith(("\r", "\n")):
            line += self.text.readline(self.limit + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.size += num_bytes(line.rstrip("\r\n"))
        self.is_quoted ^= line.count('"') % 2 == 1
        if self.size > self.limit:
            self._skip(line)
            raise _RowTooLarge
        return line

    def header(self) -> str:
        """Return the first line that is not empty. It is returned again as the first record."""
        line = next(self, "")
        while line and not line.strip("\r\n"):
            line = next(self, "")
        self.pending, self.number = line, self.number - bool(line)
        self.begin()
        return line

    def _skip(self, line: str) -> None:
        """Move to the end of a record, which is the end of a line outside quotes."""
        while line and (self.is_quoted or line[-1] not in "\r\n"):
            before, line = line[-1], self.text.readline(rows.CHUNK_BYTES)
            self.is_quoted ^= line.count('"') % 2 == 1
            self.number += before in "\r\n" and bool(line) and before + line[0] != "\r\n"
        if line[-1:] == "\r":  # a block may end between \r and \n
            after = self.text.readline(1)
            self.pending = "" if after == "\n" else after


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
