"""Read the rows of JSON: an array, lines, or a table column by column. One row and one block are in memory."""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from sftmix.data import rows
from sftmix.data.row_errors import records_in
from sftmix.data.rows import Row, num_bytes, open_file, too_large
from sftmix.data.schemas import matching_schemas
from sftmix.data.turns import is_dialogue
from sftmix.errors import InputError

BLANKS = " \t\r\n\v\f"
BLANK = re.compile(f"[{BLANKS}]*")
LONGEST_CUT = 16  # characters: if a block ends inside a literal or an escape, the error is at its first character


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, and refuse a key that appears twice: Python's own reader silently keeps the last value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} appears twice in an object")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_without_repeated_keys)


def _not_json(path: Path, line: int, error: Exception) -> InputError:
    """Return the error for a line that is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        cause = f"{error.msg}, column {error.colno}"
    else:
        cause = "nested too deep" if isinstance(error, RecursionError) else str(error)
    return InputError(f"{path}, line {line}: not JSON ({cause})")


class ArrayReader:
    """Iterates over the rows of a JSON array. A row of more than `limit` bytes is skipped block by block."""

    # Characters that open or close a value or a string: between rows, inside brackets, inside a string.
    OUTSIDE, BRACKETS, STRING = re.compile(r'["\[\]{},]'), re.compile(r'["\[\]{}]'), re.compile(r'"|\\+')

    def __init__(self, path: Path, handle: IO[bytes], limit: int) -> None:
        self.path, self.handle, self.limit = path, handle, limit
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line = "", 0, 1

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            InputError: If the file is not a JSON array.
        """
        if self._next_character() != "[":
            self._fail("expected [ before the first row")
        self.at += 1
        number = 0
        while number or self._next_character() != "]":
            self._next_character()
            is_whole, value = self._value()
            number += 1
            where = f"{self.path}, row {number}"
            yield Row(where, number, value) if is_whole else too_large(where, number, self.limit)
            mark = self._next_character()
            if mark == "]":
                break
            if mark != ",":
                self._fail("expected , or ] after a row" if mark else "the file ends inside the array")
            self.at += 1
        self.at += 1
        if self._next_character():
            self._fail("text after the array")

    def _value(self) -> tuple[bool, Any]:
        """Read a value, or skip a value that is larger than the limit; return whether it was read, and the value."""
        block = rows.CHUNK_BYTES
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                line = self.line + error.lineno - 1
                # A value that cannot be read may only be incomplete because the block ends in it.
                ends_in_it = error.pos >= len(self.text) - LONGEST_CUT or error.msg.startswith("Unterminated string")
                if ends_in_it and len(self.text) - self.at > self.limit:
                    self._skip()
                    return False, None
                if not ends_in_it or not self._more(block):
                    raise _not_json(self.path, line, error) from None
            except (ValueError, RecursionError) as error:
                raise _not_json(self.path, self._line(), error) from None
            else:  # if the text ends here, a number may continue in the next block, also after a mark such as "e+"
                length = end - self.at
                if end < len(self.text) - 2 or not self._more(block):
                    start, self.at = self.at, self.at + length
                    return num_bytes(self.text[start : self.at]) <= self.limit, value
            block = min(2 * block, max(self.limit, rows.CHUNK_BYTES))

    def _skip(self) -> None:
        """Move block by block to the end of a value, where its brackets and its string are closed."""
        depth, is_string = 0, False
        while True:
            marks = self.STRING if is_string else self.BRACKETS if depth else self.OUTSIDE
            found = marks.search(self.text, self.at)
            if found is None:
                self.at = len(self.text)
                if not self._more():
                    return
                continue
            mark = found[0]
            if mark[0] == "\\":  # of several, the last one escapes the next character if their count is odd
                self.at = found.start() + len(mark) // 2 * 2
                if len(mark) % 2:
                    if self.at + 1 == len(self.text) and not self._more():
                        return
                    self.at += 2
                continue
            if not is_string and depth == 0 and mark in ",]}":
                self.at = found.start()
                return
            self.at = found.end()
            if mark == '"':
                is_string = not is_string
            else:
                depth += 1 if mark in "[{" else -1
            if depth == 0 and not is_string:
                return

    def _next_character(self) -> str:
        """Move to the next character that is not blank and return it; return an empty string at the end of the file."""
        while True:
            found = BLANK.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def _more(self, size: int | None = None) -> bool:
        """Read another block; return False at the end of the file."""
        block = self.handle.read(size or rows.CHUNK_BYTES)
        self.line, self.text, self.at = self._line(), self.text[self.at :] + self.decoder.decode(block, not block), 0
        return bool(block)

    def _line(self) -> int:
        return self.line + self.text.count("\n", 0, self.at)

    def _fail(self, cause: str) -> None:
        raise InputError(f"{self.path}, line {self._line()}: not JSON ({cause})")


def read_json_lines(path: Path, handle: IO[bytes], limit: int) -> Iterator[Row]:
    """Yield the rows of JSON lines, or of a file whose only value is a table that is written column by column.

    Args:
        limit: Maximum size of a row in bytes.

    Raises:
        InputError: If the file is not JSON, or holds no table.
    """
    found = _rows_of_lines(path, handle, limit)
    try:
        first = list(islice(found, 2))
    except InputError:
        if not (value := _over_lines(path, limit)):
            raise
        first, records = [], _columns_to_records(value)
        if records is None:
            held = records_in(value)
            expected = "one JSON object, expected an array of rows or a row a line"
            raise InputError(f"{path}: {expected}" + (f". {held}" if held else "")) from None
    else:
        records = _columns_to_records(first[0].fields) if len(first) == 1 else None
    if records is None:
        yield from chain(first, found)
    for number, fields in enumerate(records or [], start=1):
        yield Row(f"{path}, row {number}", number, fields)


def _rows_of_lines(path: Path, handle: IO[bytes], limit: int) -> Iterator[Row]:
    """Yield the rows of JSON lines. A longer line is skipped block by block."""
    number = line_number = 0
    while line := handle.readline(limit + 1):
        line_number += 1
        where = f"{path}, line {line_number}"
        if len(line) > limit and not line.endswith(b"\n"):
            number += 1
            while line and not line.endswith(b"\n"):
                line = handle.readline(rows.CHUNK_BYTES)
            yield too_large(where, number, limit)
        elif text := line.decode("utf-8-sig" if line_number == 1 else "utf-8").strip():
            number += 1
            try:
                fields = DECODER.decode(text)
            except (ValueError, RecursionError) as error:
                raise _not_json(path, line_number, error) from None
            yield Row(where, number, fields)


def _over_lines(path: Path, limit: int) -> dict[str, Any]:
    """Return the object of several lines that a file is, {} for other files. Raise an InputError if text follows it."""
    with open_file(path) as handle:
        text = handle.read(limit + 1).decode("utf-8-sig", errors="ignore").strip()
    try:
        value, end = DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or "\n" not in text[:end]:
        return {}
    if end < len(text):
        raise InputError(f"{path}: an object of several lines, expected an array of rows or a row a line")
    return value


def _columns_to_records(value: Any) -> list[dict[str, Any]] | None:
    """Return the records of a table that is written column by column; None for any other value.

    `pandas.DataFrame.to_json()` writes an object of row labels for each column, its `orient="split"` the names of the
    columns beside the rows, and `datasets.Dataset.to_dict()` a list for each column.
    """
    if not isinstance(value, dict) or not value:
        return None
    names, columns = list(value), list(value.values())
    if set(names) == {"columns", "index", "data"} and all(isinstance(column, list) for column in columns):
        records = value["data"]
        if all(isinstance(record, list) and len(record) == len(value["columns"]) for record in records):
            return [dict(zip(map(str, value["columns"]), record, strict=True)) for record in records]
        return None
    if all(isinstance(column, dict) for column in columns):
        labels = list(columns[0])
        is_table = all(list(column) == labels for column in columns)
        is_by_column = bool(matching_schemas(value)) or all(label.isdecimal() for label in labels)
        if not labels or not is_table or not is_by_column:
            return None
        columns = [list(column.values()) for column in columns]
    elif not all(isinstance(column, list) for column in columns):
        return None
    elif not matching_schemas(value) and any(isinstance(held, dict) for column in columns for held in column):
        return None  # records under a key
    if len({len(column) for column in columns}) > 1 or any(is_dialogue(column) for column in columns):
        return None
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
