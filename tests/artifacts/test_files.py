"""Files are written as a whole or not at all."""

import errno

import pytest

from sftmix.artifacts import files
from sftmix.artifacts.files import replacing_folder, write_json
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import write_table


def test_a_replaced_folder_never_writes_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").write_text("precious")
    for name in ("model", "model.partial"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with replacing_folder(tmp_path / "model") as aside:
        (aside / "x").write_text("x")
    assert not (tmp_path / "model").is_symlink()
    assert [f.name for f in (tmp_path / "model").iterdir()] == ["x"]
    assert [f.name for f in (tmp_path / "elsewhere").iterdir()] == ["precious"]


def test_text_with_half_a_character_is_written_and_read_as_it_was(tmp_path):
    content = {"caf\udce9 \ud800": "\\ ü 😀"}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert "ü 😀" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_full_disk_leaves_no_temporary_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    for write in (write_json, lambda path, _: write_table(path, {"a": [1]})):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "x.json", {})
    assert not list(tmp_path.iterdir())
