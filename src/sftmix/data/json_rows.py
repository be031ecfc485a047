"""Read the rows of JSON lines, or of a table that is written column by column."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from sftmix.data import rows
from sftmix.data.error_hints import records_in
from sftmix.data.json_array import DECODER, not_json
from sftmix.data.rows import Row, open_file, too_large
from sftmix.data.schemas import matching_schemas
from sftmix.data.turns import is_dialogue
from sftmix.errors import InputError


def _bounded_lines(handle: IO[bytes], limit: int) -> Iterator[bytes | None]:
    """Yield the lines of a file; None for a line of more than `limit` bytes, which is skipped block by block."""
    while line := handle.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(rows.CHUNK_BYTES)
        yield None


def read_json_lines(path: Path, handle: IO[bytes], limit: int) -> Iterator[Row]:
    """Yield the rows of JSON lines, or of a file whose only value is a table that is written column by column.

    Args:
        limit: Maximum size of a row in bytes.

    Raises:
        InputError: If the file is not JSON, or holds no table.
    """
    number, only = 0, None
    for line_number, line in enumerate(_bounded_lines(handle, limit), start=1):
        text = "" if line is None else line.decode("utf-8-sig" if line_number == 1 else "utf-8").strip()
        if line is not None and not text:
            continue
        number, where = number + 1, f"{path}, line {line_number}"
        if line is None:
            row = too_large(where, number, limit)
        else:
            try:
                row = Row(where, number, DECODER.decode(text))
            except (ValueError, RecursionError) as error:
                if number > 1 or not (value := _over_lines(path, limit)):
                    raise not_json(path, line_number, error) from None
                yield from _rows_of_columns(path, value)
                return
        if number == 1:
            only = row
            continue
        if only is not None:
            yield only
            only = None
        yield row
    if only is not None:
        records = _columns_to_records(only.fields)
        yield from [only] if records is None else _numbered(path, records)


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


def _rows_of_columns(path: Path, value: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a table that is written column by column. Raise an InputError if it is another object."""
    records = _columns_to_records(value)
    if records is None:
        held = records_in(value)
        expected = "one JSON object, expected an array of rows or a row a line"
        raise InputError(f"{path}: {expected}" + (f". {held}" if held else ""))
    yield from _numbered(path, records)


def _numbered(path: Path, records: Iterable[dict[str, Any]]) -> Iterator[Row]:
    for number, fields in enumerate(records, start=1):
        yield Row(f"{path}, row {number}", number, fields)


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
