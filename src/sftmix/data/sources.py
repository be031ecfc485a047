"""Rows from files and from the hub, each with the place it came from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.errors import InputError
from sftmix.hub import not_given

LOCAL_COPY = "data.path=..."


class Row(NamedTuple):
    """One record of a source.

    Attributes:
        where: the place, for messages: file (or hub id) and row or line.
        number: the row in the source, counted from 1.
        fields: what the record holds.
    """

    where: str
    number: int
    fields: Any


def check_file(path: Path) -> None:
    """Refuse a file that is missing, empty or of a kind that is not read, in one line.

    Raises:
        InputError: one of these.
    """
    if not path.is_file():
        raise InputError(f"data.path={path}: no such file")
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"data.path={path}: expected a .json or .jsonl file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty, expected JSON rows")


def read_file(path: Path) -> Iterator[Row]:
    """The rows of a JSON array (.json) or of JSON lines (.jsonl, or a .json file that does not begin with `[`).

    Raises:
        InputError: the file is missing, empty, not UTF-8, cut off, or holds something else.
    """
    check_file(path)
    text = _decode(path)
    start = text.lstrip()
    if not start:
        raise InputError(f"{path}: the file is empty, expected JSON rows")
    rows = _array(path, text) if path.suffix == ".json" and start[0] == "[" else _lines(path, text)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise InputError(f"{path}: no rows, expected at least one")


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: could not be read ({error.strerror})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[error.start]
        raise InputError(f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8, expected UTF-8 text") from None


def _parse(text: str, where: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{where}, line {line}: not JSON ({error.msg} at column {error.colno})") from None


def _array(path: Path, text: str) -> Iterator[Row]:
    for number, fields in enumerate(_parse(text, str(path), 1), start=1):
        yield Row(f"{path}, row {number}", number, fields)


def _lines(path: Path, text: str) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            number += 1
            yield Row(f"{path}, line {line_number}", number, _parse(line, str(path), line_number))


def read_hub(hub_id: str, revision: str | None, split: str) -> Iterator[Row]:
    """The rows of a data set on the Hugging Face hub, at a pinned revision.

    Raises:
        InputError: the hub cannot be reached, or has no such data set, revision or split.
    """
    import datasets

    try:
        table = datasets.load_dataset(hub_id, revision=revision, split=split)
    except Exception as error:  # the hub's client raises a dozen types for "not to be had"
        raise not_given("dataset", f"{hub_id} (split {split})", error, LOCAL_COPY) from None
    for number, fields in enumerate(table, start=1):
        yield Row(f"{hub_id} ({split}), row {number}", number, fields)
