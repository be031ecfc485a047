"""Read and write parquet tables."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sftmix.artifacts.files import replacing_file
from sftmix.artifacts.manifest import damaged, verify_file
from sftmix.errors import InputError, first_line

VAL_SETS = "val_sets.parquet"  # of a run: losses of the examples of `data.val_path`, by set
CONFIDENCE_COLUMNS = ("example_id", "checkpoint", "num_tokens", "nll")


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length as a parquet file, as a whole or not at all."""
    write_parts(path, [columns])


def write_parts(path: Path, parts: Iterable[Mapping[str, Any]]) -> None:
    """Write tables of the same columns one after the other as a parquet file, as a whole or not at all."""
    import pyarrow
    from pyarrow import parquet

    with replacing_file(path) as aside:
        writer = None
        for part in parts:
            table = pyarrow.table(dict(part))
            writer = writer or parquet.ParquetWriter(aside, table.schema, write_page_checksum=True)
            writer.write_table(table)
        assert writer is not None
        writer.close()


def read_table(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a parquet file. A file of an artifact is compared with its checksum.

    Raises:
        InputError: If the file is missing, damaged or not a parquet file.
    """
    return read_arrow(path).to_pydict()


def read_arrow(path: Path) -> Any:
    """Return the Arrow table of a parquet file. A file of an artifact is compared with its checksum.

    Raises:
        InputError: If the file is missing, damaged or not a parquet file.
    """
    import pyarrow
    from pyarrow import parquet

    verify_file(path)
    try:
        return parquet.read_table(path, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise damaged(path, f"cannot be read, expected a parquet file ({first_line(error)})") from None


def read_confidence(path: Path) -> Any:
    """Return the Arrow table of columns `example_id, checkpoint, num_tokens, nll` (nats) of a confidence file.

    Raises:
        InputError: If the file is missing, not a parquet file, or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"confidence.path={path}: no such file")
    table = read_arrow(path)
    lacking = [name for name in CONFIDENCE_COLUMNS if name not in table.column_names]
    if lacking:
        raise InputError(f"{path}: no column {', '.join(lacking)}; found {', '.join(table.column_names)}")
    return table
