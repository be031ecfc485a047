"""What `run=` means: a finished run, its model's folder, any Hugging Face folder, the newest run."""

import os
import shutil

import pytest

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.errors import InputError
from sftmix.evaluation.target import find_target


@pytest.fixture(scope="module")
def root(small_run):
    return small_run[1].target.folder.parent


def test_a_run_is_found_by_folder_by_name_and_by_its_models_folder(small_run, root):
    target = small_run[1].target.folder
    by_folder, by_name, by_model = (
        find_target(str(given), None, root) for given in (target, target.name, target / "model")
    )
    assert by_folder == by_name == by_model
    assert by_folder.run == by_folder.folder == target.resolve()
    assert by_folder.model == str(target.resolve() / "model")
    assert by_folder.is_embedded


def test_the_newest_run_is_taken_where_none_is_named(small_run, root, capsys):
    assert find_target(None, None, root).run == small_run[1].target.folder.resolve()
    assert "the newest" in capsys.readouterr().out


def test_a_folder_of_another_trainer_has_its_results_under_the_root(small_run, root, tmp_path):
    foreign = tmp_path / "mine"
    shutil.copytree(small_run[1].target.folder / "model", foreign)
    target = find_target(str(foreign), None, root)
    assert target.run is None
    assert not target.is_embedded
    assert target.folder.parent == root / "evaluated"
    assert target.folder.name.startswith("mine-")
    assert os.listdir(foreign) == os.listdir(small_run[1].target.folder / "model")
    assert target.identity == find_target(str(small_run[1].target.folder), None, root).identity


def test_other_weights_are_another_subject(small_run, root, tmp_path):
    foreign = tmp_path / "mine"
    shutil.copytree(small_run[1].target.folder / "model", foreign)
    config = read_json(foreign / "config.json")
    write_json(foreign / "config.json", {**config, "rms_norm_eps": 1e-3})
    assert find_target(str(foreign), None, root).identity != find_target(None, None, root).identity


def test_the_error_on_a_path_without_a_model_is_one_line(root, tmp_path):
    for given, said in (
        (f"{root.name}/none", rf"run={root.name}/none: no such folder; finished runs in .*: ntp-tiny"),
        ("nothing/at/all", r"run=nothing/at/all: no such folder, here or in"),
        (str(tmp_path), r"no config\.json, weights and tokenizer in it, expected config\.json, \*\.safetensors, tok"),
    ):
        with pytest.raises(InputError, match=said):
            find_target(given, None, root)
    with pytest.raises(InputError, match=r"run has no value and there is no finished run"):
        find_target(None, None, tmp_path)


def test_a_revision_of_a_folder_is_refused(small_run, root):
    with pytest.raises(InputError, match=r"revision=abc: .* is a folder"):
        find_target(str(small_run[1].target.folder), "abc", root)
