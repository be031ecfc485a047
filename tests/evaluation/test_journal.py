"""A journal loses nothing that was written, and nothing is glued onto what a kill left half."""

import json

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.journal import open_journal


def test_what_was_written_is_there_the_next_time(tmp_path):
    with open_journal(tmp_path / "a" / "j.jsonl") as journal:
        journal.append("x", {"value": 1})
        journal.append("y", {"value": "two\nlines \ud800"})
    with open_journal(tmp_path / "a" / "j.jsonl") as journal:
        assert len(journal) == 2
        assert "x" in journal
        assert "z" not in journal
        assert journal["y"]["value"] == "two\nlines \ud800"
        assert [record["key"] for record in journal] == ["x", "y"]


def test_a_torn_last_line_is_cut_off_and_the_next_record_is_whole(tmp_path):
    file = tmp_path / "j.jsonl"
    file.write_bytes(b'{"key": "x", "value": 1}\n{"key": "y", "val')
    with open_journal(file) as journal:
        assert "y" not in journal
        journal.append("y", {"value": 2})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [{"key": "x", "value": 1}, {"key": "y", "value": 2}]
    with open_journal(file) as journal:
        assert len(journal) == 2


def test_a_bad_line_in_the_middle_is_told_with_its_number(tmp_path):
    file = tmp_path / "j.jsonl"
    file.write_text('{"key": "x"}\nnonsense\n{"key": "y"}\n')
    with pytest.raises(InputError, match=r"j\.jsonl, line 2: holds no record"), open_journal(file):
        pass


def test_two_at_once_are_refused(tmp_path):
    file = tmp_path / "j.jsonl"
    with (
        open_journal(file) as journal,
        pytest.raises(InputError, match="another evaluation is writing it"),
        open_journal(file),
    ):
        pass
    with open_journal(file) as journal:
        journal.append("x", {})
