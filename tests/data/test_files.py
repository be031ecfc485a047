"""Which files of a path hold rows, and the one-line errors about the others."""

import json
import os

import pytest

from sftmix.data.files import check_file, data_files, local_copy, other_files, stray_files
from sftmix.data.sources import read_file, read_path
from sftmix.errors import InputError

ROWS = [{"instruction": "A", "output": "B"}, {"instruction": "Ü", "output": "D\nE"}]


def read(path):
    return list(read_file(path))


def test_a_folder_is_all_its_files_by_name(tmp_path):
    (tmp_path / "data").mkdir()
    for name, row in (("data/b.jsonl", ROWS[1]), ("a.json", [ROWS[0]])):
        (tmp_path / name).write_text(json.dumps(row))
    for name in ("README.md", ".hidden.json", "data/.cache"):
        (tmp_path / name).write_text("not read")
    assert [(row.source, row.fields) for row in read_path(tmp_path)] == [("a.json", ROWS[0]), ("data/b.jsonl", ROWS[1])]


def test_a_folder_without_data_is_an_error_that_names_another_file(tmp_path):
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(InputError, match=r"no file in it \(there is README\.md\), expected one of \.json"):
        data_files(tmp_path)


def test_the_copies_of_a_mixture_are_found_by_name(tmp_path):
    (tmp_path / "wikidoc.jsonl").write_text("{}")
    (tmp_path / "medqa").mkdir()
    assert local_copy(tmp_path, "wikidoc").name == "wikidoc.jsonl"
    assert local_copy(tmp_path, "medqa").is_dir()
    with pytest.raises(InputError, match=r"no copy of source cord19 in it .* leave it out by data\.mixture\.leave_out"):
        local_copy(tmp_path, "cord19")


def test_two_copies_of_a_source_are_refused(tmp_path):
    for name in ("wikidoc.json", "wikidoc.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        InputError, match=r"wikidoc\.json and wikidoc\.jsonl in it, expected one copy of source wikidoc"
    ):
        local_copy(tmp_path, "wikidoc")


def test_data_files_beside_the_copies_of_a_mixture_are_named(tmp_path):
    (tmp_path / "medqa").mkdir()
    for name in ("wikidoc.jsonl.gz", "medqa/a.json", "WikiDoc.json", "wikidoc_old.csv", ".hidden.json", "README.md"):
        (tmp_path / name).write_text("{}")
    assert stray_files(tmp_path, ["wikidoc", "medqa"]) == ["WikiDoc.json", "wikidoc_old.csv"]


def test_a_folder_instead_of_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.select\.path=.*: a folder, expected a file"):
        check_file(tmp_path, "data.select.path")


def test_a_file_name_that_is_no_text_is_written_out(tmp_path):
    try:
        for name in (b"caf\xe9.jsonl", b"caf\xe9.zst", b"two\nlines.jsonl"):
            (tmp_path / os.fsdecode(name)).write_text(json.dumps(ROWS[0]))
    except OSError:
        pytest.skip("this file system has no such names")
    assert [row.source for row in read_path(tmp_path)] == [r"caf\udce9.jsonl", r"two\nlines.jsonl"]
    assert other_files(tmp_path) == [r"caf\udce9.zst"]
    (file,) = tmp_path.glob("caf*.jsonl")
    assert [row.source for row in read_path(file)] == [row.source for row in read_file(file)] == [r"caf\udce9.jsonl"]


def test_a_pointer_of_git_lfs_is_refused(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("a.parquet", "a.jsonl", "a.json", "a.csv"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(
            InputError, match=rf"{name}: a pointer of Git LFS, expected the file itself; run git lfs pull"
        ):
            read(tmp_path / name)


def test_files_of_other_kinds_in_a_folder_are_named(tmp_path):
    (tmp_path / "inside").mkdir()
    for name in ("a.jsonl", "b.jsonl.zst", "inside/c.xlsx", ".hidden"):
        (tmp_path / name).write_text("{}")
    assert other_files(tmp_path) == ["b.jsonl.zst", "inside/c.xlsx"]
    assert other_files(tmp_path / "a.jsonl") == []
