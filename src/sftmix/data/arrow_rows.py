"""Read the rows of Parquet files, Arrow files, and data sets on the hub, a few at a time."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sftmix.data.rows import MAX_ROW_BYTES, Row, check_columns, too_large
from sftmix.errors import InputError, first_line
from sftmix.hub import unavailable

LOCAL_COPY = "data.path=..."
BATCH_BYTES, BATCH_ROWS = 2**22, 64  # of Parquet, whichever is less: a group counts the bytes of a repeated text once


def read_parquet(path: Path, limit: int) -> Iterator[Row]:
    """Yield the rows of a Parquet file; of rows that are larger than `limit` bytes, only a report."""
    from pyarrow import parquet

    with _arrow_errors(path, "Parquet"), parquet.ParquetFile(path) as file:
        check_columns(path, file.schema_arrow.names)

        def batches() -> Iterator[Any]:
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                num_rows, size = metadata.num_rows, max(1, metadata.total_byte_size)
                if num_rows == 1 and size > limit:
                    yield None  # not decompressed
                else:
                    rows_at_a_time = max(1, min(BATCH_ROWS, BATCH_BYTES * num_rows // size))
                    yield from file.iter_batches(rows_at_a_time, row_groups=[group])

        yield from _rows(path, batches(), limit)


def read_arrow(path: Path, limit: int) -> Iterator[Row]:
    """Yield the rows of an Arrow file: a stream, as `datasets.save_to_disk` writes it, or a file with a footer."""
    from pyarrow import ipc, memory_map

    with _arrow_errors(path, "Arrow"), memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            table = ipc.open_file(file)
            batches: Iterable[Any] = map(table.get_batch, range(table.num_record_batches))
        else:
            file.seek(0)
            batches = table = ipc.open_stream(file)
        check_columns(path, table.schema.names)
        parts = (batch.slice(k, BATCH_ROWS) for batch in batches for k in range(0, batch.num_rows, BATCH_ROWS))
        yield from _rows(path, parts, limit)


def read_hub(hub_id: str, revision: str | None, split: str, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row]:
    """Yield the rows of a data set on the Hugging Face hub, at a pinned revision.

    Raises:
        InputError: If the hub cannot be reached, or has no such data set, revision, or split.
    """
    import datasets

    try:
        table = datasets.load_dataset(hub_id, revision=revision, split=split)
    except Exception as error:  # a dozen types, by cause and version
        raise unavailable("dataset", f"{hub_id} (split {split})", error, LOCAL_COPY) from None
    batches = (batch for part in table.with_format("arrow").iter(BATCH_ROWS) for batch in part.to_batches())
    for row in _rows(f"{hub_id} ({split})", batches, max_row_bytes):
        yield row._replace(source=hub_id)


@contextmanager
def _arrow_errors(path: Path, kind: str) -> Iterator[None]:
    """Report in one line what pyarrow cannot read."""
    import pyarrow

    try:
        yield
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: could not be read as {kind} ({first_line(error)})") from None


def _rows(where: object, batches: Iterable[Any], limit: int) -> Iterator[Row]:
    """Yield the rows of Arrow batches. A batch that is None counts as one row that is larger than the limit."""
    number = 0
    for batch in batches:
        is_small = batch is None or batch.nbytes <= limit
        for part in [batch] if is_small else [batch.slice(k, 1) for k in range(batch.num_rows)]:
            is_large = part is None or part.nbytes > limit
            for record in [None] if is_large else part.to_pylist():
                number += 1
                at = f"{where}, row {number}"
                yield too_large(at, number, limit) if is_large else Row(at, number, record)
