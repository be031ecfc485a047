"""Artifacts: known by what they depend on, complete or absent, made once."""

import multiprocessing
import os
import time

import pytest

from sftmix.artifacts import (
    Artifact,
    content_hash,
    fingerprint,
    making,
    read_confidence,
    read_json,
    read_table,
    write_json,
    write_table,
)
from sftmix.errors import InputError


def artifact(root, **fields):
    return Artifact(root, "a thing/of 2", fields)


def test_text_with_half_a_character_is_written_and_read_as_it_was(tmp_path):
    content = {"caf\udce9 \ud800": "\\ ü 😀"}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert "ü 😀" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_folder_of_files_whose_names_are_no_text_has_a_hash(tmp_path):
    (tmp_path / "model").mkdir()
    try:
        (tmp_path / "model" / os.fsdecode(b"caf\xe9.json")).write_text("{}")
    except OSError:
        pytest.skip("this file system has no such names")
    known = content_hash(tmp_path / "model", tmp_path / "cache.json")
    assert content_hash(tmp_path / "model", tmp_path / "cache.json") == known


def test_a_fingerprint_is_of_the_content_whatever_its_order():
    assert fingerprint({"a": 1, "b": [1.0, None]}) == fingerprint({"b": [1.0, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 8


def test_a_folder_has_a_readable_name_and_its_fields_in_its_manifest(tmp_path):
    one = artifact(tmp_path, mu=0.2)
    with making(one) as folder:
        write_json(folder / "x.json", 1)
    assert one.folder == tmp_path / f"a_thing_of_2-{one.fingerprint}"
    assert read_json(one.folder / "manifest.json")["fields"] == {"mu": 0.2}
    assert one.is_complete


def test_what_fails_is_not_there_and_is_begun_anew(tmp_path):
    one = artifact(tmp_path)
    with pytest.raises(RuntimeError), making(one) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert not one.folder.exists()
    with making(one) as folder:
        assert not (folder / "half").exists()
    assert one.is_complete
    assert not list(tmp_path.glob("*.partial"))


def test_what_can_be_resumed_keeps_what_was_left(tmp_path):
    one = artifact(tmp_path)
    with pytest.raises(KeyboardInterrupt), making(one, resume=True) as folder:
        (folder / "part").write_text("done")
        raise KeyboardInterrupt
    with making(one, resume=True) as folder:
        assert (folder / "part").read_text() == "done"


def test_what_is_there_is_not_made_again_unless_asked_for(tmp_path):
    one = artifact(tmp_path)
    with making(one) as folder:
        (folder / "x").write_text("first")
    with making(one) as folder:
        assert folder is None
    with pytest.raises(RuntimeError), making(one, usable=lambda folder: not (folder / "x").exists()):
        raise RuntimeError
    assert (one.folder / "x").read_text() == "first", "the old one stays until the new one is complete"
    with making(one, usable=lambda folder: not (folder / "x").exists()) as folder:
        (folder / "x").write_text("second")
    assert (one.folder / "x").read_text() == "second"
    assert {f.name for f in tmp_path.iterdir()} == {one.folder.name, ".locks"}


def _make_slowly(root, started):
    with making(artifact(root)) as folder:
        started.set()
        time.sleep(0.5)
        (folder / "by").write_text("the first")


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path, capsys):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    other = context.Process(target=_make_slowly, args=(tmp_path, started))
    other.start()
    assert started.wait(60)
    with making(artifact(tmp_path)) as folder:
        assert folder is None
    other.join()
    assert (artifact(tmp_path).folder / "by").read_text() == "the first"
    assert "another process is making" in capsys.readouterr().out


def test_a_content_hash_follows_the_bytes_and_is_remembered(tmp_path):
    cache, file = tmp_path / "cache.json", tmp_path / "f"
    file.write_text("abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc", FIPS 180
    assert content_hash(file, cache) == known
    assert list(read_json(cache).values()) == [known]
    write_json(cache, dict.fromkeys(read_json(cache), "remembered"))
    assert content_hash(file, cache) == "remembered"
    file.write_text("abcd")
    assert content_hash(file, cache) != known


def test_a_folders_hash_is_of_its_named_files(tmp_path):
    cache, folder = tmp_path / "cache.json", tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = content_hash(folder, cache, ("*.json",))
    (folder / "README.md").write_text("words")
    assert content_hash(folder, cache, ("*.json",)) == before
    (folder / "tokenizer.json").write_text("{}")
    assert content_hash(folder, cache, ("*.json",)) != before


def test_tables_come_back_as_they_were(tmp_path):
    columns = {"example_id": ["a", "b"], "nll": [0.1 + 0.2, 1e-300], "half": [None, "confident"]}
    write_table(tmp_path / "t.parquet", columns)
    assert read_table(tmp_path / "t.parquet") == columns
    assert [f.name for f in tmp_path.iterdir()] == ["t.parquet"]


def test_a_confidence_file_that_is_missing_is_told(tmp_path):
    with pytest.raises(InputError, match=r"confidence\.path=.*none\.parquet: no such file"):
        read_confidence(tmp_path / "none.parquet")
