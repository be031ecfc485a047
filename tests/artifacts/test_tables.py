"""Parquet tables of artifacts."""

import pytest

from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_confidence, read_table, write_table
from sftmix.errors import InputError


def test_a_table_is_read_as_it_was_written(tmp_path):
    columns = {"example_id": ["a", "b"], "nll": [0.1 + 0.2, 1e-300], "half": [None, "confident"]}
    write_table(tmp_path / "t.parquet", columns)
    assert read_table(tmp_path / "t.parquet") == columns
    assert [f.name for f in tmp_path.iterdir()] == ["t.parquet"]


def test_a_missing_confidence_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"confidence\.path=.*none\.parquet: no such file"):
        read_confidence(tmp_path / "none.parquet")


@pytest.mark.parametrize("name", ["x.json", "x.parquet"])
@pytest.mark.parametrize("content", [b"", b"torn", b"\xff\xfe", b"PAR1PAR1"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: .*expected a (JSON|parquet) file"):
        (read_json if name == "x.json" else read_table)(tmp_path / name)
