"""JSON files: arrays in blocks, wrappers around the rows, tables written column by column."""

import json
import tracemalloc

import pytest

from sftmix.data.sources import read_file
from sftmix.errors import InputError

ROWS = [{"instruction": "A", "output": "B"}, {"instruction": "Ü", "output": "D\nE"}]


def read(path):
    return list(read_file(path))


@pytest.mark.parametrize("blank", ["\x0b", "\x0c", " \x0c\r\n"])
def test_blanks_of_every_kind_may_precede_an_array(tmp_path, blank):
    (tmp_path / "a.json").write_text(f"{blank}{json.dumps(ROWS)}{blank}")
    assert [row.fields for row in read(tmp_path / "a.json")] == ROWS


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_not_held_whole(tmp_path, monkeypatch, indent):
    """A file of 2 MB is read in blocks of 4 KiB. Only a few blocks are in memory at a time."""
    monkeypatch.setattr("sftmix.data.rows.CHUNK_BYTES", 4096)
    rows = [{"instruction": str(i), "output": "x" * 1000} for i in range(2000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent))
    assert [row.fields for row in read_file(tmp_path / "a.json")] == rows
    tracemalloc.start()
    for _ in read_file(tmp_path / "a.json"):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


TABLE = [{"instruction": "A", "input": None, "output": "B"}, {"instruction": "C", "input": "D", "output": "E\nF"}]


@pytest.mark.parametrize("lines", [1, 3], ids=["one line", "several lines"])
@pytest.mark.parametrize("form", ["columns", "split", "dictionary"])
def test_a_table_that_is_written_column_by_column_gives_its_rows(tmp_path, form, lines):
    """As pandas.DataFrame.to_json() and datasets.Dataset.to_dict() write it."""
    import datasets
    import pandas

    if form == "dictionary":
        text = json.dumps(datasets.Dataset.from_list(TABLE).to_dict(), indent=lines - 1 or None)
    else:
        text = pandas.DataFrame(TABLE).to_json(orient=form, indent=lines - 1)
    (tmp_path / "a.json").write_text(text + "\n")
    assert [row.fields for row in read(tmp_path / "a.json")] == TABLE
    assert [row.number for row in read(tmp_path / "a.json")] == [1, 2]


@pytest.mark.parametrize("indent", [None, 2])
def test_columns_of_dialogues_are_rows_and_a_dialogue_is_a_row(tmp_path, indent):
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    file = tmp_path / "a.json"
    for columns, rows in (
        ({"messages": [turns, turns]}, [{"messages": turns}] * 2),
        ({"prompt": [turns[:1]], "completion": [turns[1:]]}, [{"prompt": turns[:1], "completion": turns[1:]}]),
        ({"messages": {"0": turns}, "source": {"0": "x"}}, [{"messages": turns, "source": "x"}]),
        ({"question": {"0": "A"}, "answer": {"0": "B"}}, [{"question": "A", "answer": "B"}]),
        ({"instruction": {"a": "A"}, "output": {"a": "B"}}, [{"instruction": "A", "output": "B"}]),
    ):
        file.write_text(json.dumps(columns, indent=indent))
        assert [row.fields for row in read(file)] == rows
    for row in (
        {"messages": turns},
        {"prompt": turns[:1], "completion": turns[1:]},
        {"conversations": turns, "sources": ["a", "b"]},
        {"data": [ROWS[0]]},
        {"train": ROWS, "test": ROWS},
        {"a": ROWS[0], "b": ROWS[1]},
    ):
        file.write_text(json.dumps(row))
        assert [r.fields for r in read(file)] == [row]
    file.write_text("\n".join([json.dumps({"instruction": ["A"], "output": ["B"]})] * 2))
    assert len(read(file)) == 2, "lines are rows"


def test_a_wrapper_around_the_rows_is_one_line_with_what_to_do(tmp_path):
    from sftmix.data.census import Census
    from sftmix.data.reader import examples_from_rows

    for wrapped, says in (
        ({"data": ROWS}, "If the 2 records under data are the rows, make a file of that list"),
        ({"version": "1.0", "train": ROWS, "test": ROWS[:1]}, "If the 2 records under train are the rows"),
    ):
        for indent in (None, 1):
            (tmp_path / "a.json").write_text(json.dumps(wrapped, indent=indent))
            with pytest.raises(InputError, match=says) as error:
                examples_from_rows(read_file(tmp_path / "a.json"), Census())
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_number_is_read_whole_wherever_a_block_ends(tmp_path, monkeypatch, block):
    monkeypatch.setattr("sftmix.data.rows.CHUNK_BYTES", block)
    (tmp_path / "a.json").write_text("[4.5, -0.25e+10, 1E5, 7]")
    assert [row.fields for row in read(tmp_path / "a.json")] == [4.5, -0.25e10, 1e5, 7]


def test_an_error_early_in_a_large_array_is_reported_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sftmix.data.rows.CHUNK_BYTES", 4096)
    (tmp_path / "a.json").write_text('[{"a": 1},\n{"a" 2},\n' + '{"a": 3},\n' * 200_000)
    tracemalloc.start()
    with pytest.raises(InputError, match="line 2: not JSON"):
        list(read_file(tmp_path / "a.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000
