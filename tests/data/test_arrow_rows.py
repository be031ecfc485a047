"""Rows of Parquet, Arrow and the hub, in bounded memory."""

import tracemalloc

import pyarrow
import pytest
from pyarrow import parquet

from sftmix.data.arrow_rows import read_hub
from sftmix.data.census import TOO_LARGE
from sftmix.data.sources import read_file
from sftmix.errors import InputError

ROWS = [{"instruction": "A", "output": "B"}, {"instruction": "Ü", "output": "D\nE"}]


def read(path):
    return list(read_file(path))


LIMIT, LARGE = 2**20, 2**23  # a row may have 1 MiB, the large one has 8

SMALL = {"instruction": "A", "output": "B"}


def test_an_unreachable_hub_is_one_line_with_the_remedy(monkeypatch):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"dataset a/b \(split train\).*no route.*hf auth login.*data\.path=") as error:
        list(read_hub("a/b", "main", "train"))
    assert "\n" not in str(error.value)


def test_the_hubs_rows_are_read_at_the_pinned_revision(monkeypatch):
    import datasets

    asked = {}

    def load(hub_id, *, revision, split):
        asked.update(hub_id=hub_id, revision=revision, split=split)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row.fields for row in read_hub("a/b", "0123abc", "train_sft")] == ROWS
    assert asked == {"hub_id": "a/b", "revision": "0123abc", "split": "train_sft"}


@pytest.mark.parametrize("text", [lambda i: f"{i} " + "x" * 100_000, lambda i: "x" * 100_000])
def test_long_rows_of_parquet_are_read_a_few_at_a_time(tmp_path, text):
    """512 rows of 100 kB in one group; a text that all rows share counts once in the size of the group."""
    rows = [{"instruction": str(i), "output": text(i)} for i in range(512)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    tracemalloc.start()
    assert sum(row.fields == rows[row.number - 1] for row in read_file(tmp_path / "a.parquet")) == 512
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_a_parquet_value_that_python_cannot_hold_is_one_line(tmp_path):
    far = pyarrow.array([2**61], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"instruction": ["A"], "output": ["B"], "when": far}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: could not be read as Parquet"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("writer", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_arrow_files_are_read(tmp_path, writer):
    table = pyarrow.Table.from_pylist(ROWS * 50)
    with writer(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=30)
    assert [row.fields for row in read(tmp_path / "a.arrow")] == ROWS * 50
    assert [row.number for row in read(tmp_path / "a.arrow")] == list(range(1, 101))
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:700])
    with pytest.raises(InputError, match=r"a\.arrow: could not be read as Arrow"):
        read(tmp_path / "a.arrow")


@pytest.mark.parametrize("kind", ["a.parquet", "alone.parquet", "a.arrow"])
def test_a_large_row_of_a_table_is_dropped_too(tmp_path, kind):
    rows = [SMALL, {"instruction": "A", "output": "x" * (2 * LIMIT)}, SMALL]
    table = pyarrow.Table.from_pylist(rows)
    if kind == "a.arrow":
        with pyarrow.ipc.new_stream(tmp_path / kind, table.schema) as out:
            out.write_table(table)
    else:
        parquet.write_table(table, tmp_path / kind, row_group_size=1 if kind == "alone.parquet" else None)
    read = list(read_file(tmp_path / kind, LIMIT))
    assert [row.fields for row in read] == [SMALL, None, SMALL]
    assert [row.reason for row in read if row.problem] == [TOO_LARGE]
    assert [row.fields for row in read_file(tmp_path / kind, 3 * LIMIT)] == rows
