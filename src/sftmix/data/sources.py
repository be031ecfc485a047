"""Read the rows of a file or folder, whatever the format of its files."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from sftmix.data import rows
from sftmix.data.arrow_rows import read_arrow, read_parquet
from sftmix.data.csv_rows import DELIMITERS, read_csv
from sftmix.data.files import check_file, data_files, kind_of_file
from sftmix.data.json_rows import BLANKS, ArrayReader, read_json_lines
from sftmix.data.rows import MAX_ROW_BYTES, Row, open_file
from sftmix.errors import InputError
from sftmix.terminal import one_line


def read_path(
    path: Path, split: str | None = None, max_row_bytes: int = MAX_ROW_BYTES, key: str = "data.path"
) -> Iterator[Row]:
    """Yield the rows of a file, or of the files of a folder that belong to a split.

    Raises:
        InputError: As `data_files` and `read_file`.
    """
    for file in data_files(path, key, split):
        name = one_line(file.relative_to(path) if path.is_dir() else file.name)
        for row in read_file(file, max_row_bytes):
            yield row._replace(source=name)


def read_file(path: Path, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row]:
    """Yield the rows of a file: JSON (an array, lines, or columns), CSV with a header, Parquet, or Arrow.

    The first character decides whether JSON is an array or lines, not the name of the file. At most one row and one
    block of the file are in memory. A larger row is skipped block by block and yielded as a row with a problem.

    Args:
        max_row_bytes: Maximum size of a row in bytes, uncompressed.

    Raises:
        InputError: If the file is missing, empty, not UTF-8, incomplete, or holds anything else.
    """
    check_file(path)
    kind = kind_of_file(path)
    readers = {"parquet": read_parquet, "arrow": read_arrow}
    is_empty = True
    for row in readers[kind](path, max_row_bytes) if kind in readers else _read_text(path, kind, max_row_bytes):
        is_empty = False
        yield row._replace(source=one_line(path.name))
    if is_empty:
        raise InputError(f"{path}: no rows, expected at least one")


def _read_text(path: Path, kind: str, limit: int) -> Iterator[Row]:
    with open_file(path) as handle:
        block = handle.read(rows.CHUNK_BYTES).removeprefix(codecs.BOM_UTF8)
        while block and not (first := block.lstrip(BLANKS.encode())[:1]):
            block = handle.read(rows.CHUNK_BYTES)
        if not block:
            raise InputError(f"{path}: the file is empty, expected rows")
        del block  # its memory is not needed while rows are read
        handle.seek(0)
        if kind in ("csv", "tsv"):
            yield from read_csv(path, handle, "\t" if kind == "tsv" else DELIMITERS, limit)
        else:
            yield from (ArrayReader if first == b"[" else read_json_lines)(path, handle, limit)
