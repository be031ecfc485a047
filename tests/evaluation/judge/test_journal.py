"""A journal keeps all records that were written, and continues after an incomplete last line."""

import json
import os
import stat

import pytest

from sftmix.artifacts.files import write_json
from sftmix.errors import InputError
from sftmix.evaluation.judge.journal import PRIVATE, open_journal, read_journal


def test_what_was_written_is_there_the_next_time(tmp_path):
    with open_journal(tmp_path / "a" / "j.jsonl") as journal:
        journal.append("x", {"value": 1})
        journal.append("y", {"value": "two\nlines \ud800"})
    with open_journal(tmp_path / "a" / "j.jsonl") as journal:
        assert len(journal) == 2
        assert "x" in journal
        assert "z" not in journal
        assert journal["y"]["value"] == "two\nlines \ud800"
        assert [record["key"] for record in journal.values()] == ["x", "y"]


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


BAD_LINES = {
    b"nonsense": "not JSON",
    b'{"key": "z", "val': "not JSON",
    b'{"key": "y"}{"key": "x"}': "not JSON",
    b"\xff\xfe": "not JSON",
    b"[" * 100_000: "not JSON",
    b"[1]": "not a JSON object with a key",
    b"null": "not a JSON object with a key",
    b'{"value": 1}': "not a JSON object with a key",
    b'{"key": 5}': "not a JSON object with a key",
    b'{"key": "z", "value": "text"}': "value is not a number",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_line_that_is_not_a_record_is_named_once_and_skipped(tmp_path, capsys, line):
    file = tmp_path / "j.jsonl"
    file.write_bytes(b'{"key": "x", "value": 1}\n' + line + b'\n\n{"key": "y", "value": 2}\n')

    def check(record):
        return None if isinstance(record.get("value"), int) else "value is not a number"

    for _ in range(2):
        with open_journal(file, check) as journal:
            assert [record["key"] for record in journal.values()] == ["x", "y"]
    with open_journal(file, check) as journal:
        journal.append("z", {"value": 3})
    assert len(read_journal(file, check)) == 3
    assert capsys.readouterr().err == (
        f"{file}: line 2 is not a record and skipped ({BAD_LINES[line]}); missing records are made again\n"
    )
    assert file.read_bytes().split(b"\n")[1] == line  # nothing that was written is removed


def test_several_bad_lines_are_counted(tmp_path, capsys):
    (tmp_path / "j.jsonl").write_text('{"key": "x"}\n5\n{}\n{"key": "y"}\n')
    with open_journal(tmp_path / "j.jsonl") as journal:
        assert len(journal) == 2
    assert ": 2 lines are not a record and skipped (line 2: not a JSON object with a key);" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [None, 0o644, 0o666])
def test_only_the_owner_can_read_a_journal_also_an_older_one(tmp_path, mode):
    file = tmp_path / "j.jsonl"
    if mode is not None:
        file.write_text('{"key": "x"}\n')
        file.chmod(mode)
    before = os.umask(0)
    try:
        with open_journal(file):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_file_that_is_written_privately_replaces_a_readable_one(tmp_path):
    file = tmp_path / "r.json"
    file.write_text("old")
    file.chmod(0o644)
    write_json(file, ["\u00e9"], PRIVATE)
    assert (stat.S_IMODE(file.stat().st_mode), json.loads(file.read_text())) == (0o600, ["\u00e9"])
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_two_at_once_are_refused(tmp_path):
    file = tmp_path / "j.jsonl"
    with (
        open_journal(file) as journal,
        pytest.raises(InputError, match="another evaluation is writing this file"),
        open_journal(file),
    ):
        pass
    with open_journal(file) as journal:
        journal.append("x", {})
