"""Rows from files: both JSON forms, and every way a file can be wrong told in one line."""

import json

import pytest

from sftmix.data.sources import read_file, read_hub
from sftmix.errors import InputError

ROWS = [{"instruction": "A", "output": "B"}, {"instruction": "Ü", "output": "D\nE"}]


def read(path):
    return list(read_file(path))


def test_a_json_array_and_json_lines_give_the_same_rows(tmp_path):
    array, lines, disguised = tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "c.json"
    array.write_text(json.dumps(ROWS), encoding="utf-8")
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n"
    lines.write_text(text, encoding="utf-8")
    disguised.write_text(text, encoding="utf-8-sig")
    for path in (array, lines, disguised):
        assert [row.fields for row in read(path)] == ROWS
        assert [row.number for row in read(path)] == [1, 2]


def test_a_row_knows_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read(path)] == [f"{path}, line 1", f"{path}, line 3"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.json", None, r"missing\.json: no such file"),
        ("a.csv", b"a,b", r"a\.csv: expected a \.json or \.jsonl file"),
        ("empty.json", b"", r"empty\.json: the file is empty"),
        ("blank.json", b" \n", r"blank\.json: the file is empty"),
        ("none.json", b"[]", r"none\.json: no rows"),
        ("cut.json", b'[\n {"instruction": "A",\n  "output": "B"},\n {"instr', r"cut\.json, line 4: not JSON"),
        ("cut.jsonl", b'{"a": 1}\n{"a": ', r"cut\.jsonl, line 2: not JSON"),
        ("latin.json", b'[\n{"a": "caf\xe9"}]', r"latin\.json, line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_bad_file_is_told_with_file_and_line(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do(monkeypatch):
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
