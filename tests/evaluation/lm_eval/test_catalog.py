"""Tasks that cannot be evaluated are refused in one line, before a model is loaded."""

import sys

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.lm_eval import catalog
from sftmix.evaluation.lm_eval.catalog import load_tasks


def refusal(names, folder):
    with pytest.raises(InputError) as refused:
        load_tasks(names, folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def only_own(monkeypatch):
    """The tasks of lm-eval are not read, which takes seconds."""
    index = catalog._index
    monkeypatch.setattr(catalog, "_index", lambda **arguments: index(**{**arguments, "include_defaults": False}))


def add(folder, text, name="own.yaml"):
    (folder / name).write_text(text)


def test_an_unknown_name_is_refused_with_the_nearest_names(task_folder, only_own):
    assert refusal(["animal"], task_folder) == "suite.tasks: no task, group or tag animal; did you mean animals?"
    assert "`python -m lm_eval ls tasks` lists the names" in refusal(["x"], task_folder)
    add(task_folder, "group: zoo\ntask: [animals, birds]\n")
    assert refusal(["zoo"], task_folder).startswith("suite.tasks: no task, group or tag birds (in zoo)")


def test_a_task_that_two_names_contain_is_refused(task_folder, only_own):
    add(task_folder, "group: zoo\ntask: [animals]\n")
    expected = "suite.tasks: animals and zoo both contain the task animals, expected it once"
    assert refusal(["animals", "zoo"], task_folder) == expected
    add(task_folder, "group: zoo\ntask: [zoo]\n")
    assert refusal(["zoo"], task_folder) == "suite.tasks: group zoo contains itself"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("unsafe_code: true", "it runs code that the model writes (unsafe_code), which is not done here"),
        ("dataset_kwargs: {trust_remote_code: true}", "its data set needs code of the hub (trust_remote_code)"),
        ("doc_to_image: picture", "it shows images or sound (doc_to_image), expected a task of text"),
        ("doc_to_audio: sound", "it shows images or sound (doc_to_audio), expected a task of text"),
    ],
)
def test_a_task_that_runs_foreign_code_or_shows_images_is_refused(line, message, task_folder, only_own):
    add(task_folder, f"task: own\ndataset_path: json\n{line}\n")
    assert refusal(["own"], task_folder).startswith(f"task own: {message}")
    add(task_folder, f"group: zoo\ntask: [animals, {{task: places, {line}}}]\n")
    assert refusal(["zoo"], task_folder).startswith(f"task places: {message}"), "a group can change its members"


def test_a_missing_package_is_named_with_the_extra_of_lm_eval(task_folder, only_own, monkeypatch):
    for module, remedy in (
        ("langdetect", "pip install 'lm_eval[ifeval]'"),
        ("math_verify", "pip install 'lm_eval[math]'"),
        ("pycountry", "pip install 'lm_eval[multilingual]'"),
        ("antlr4", "pip install 'lm_eval[math]'"),
        ("nowhere_at_all", "pip install nowhere_at_all"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        (task_folder / f"code_{module}.py").write_text(f"import {module}\n\ndef process(doc, results): ...\n")
        include = f"include: animals.yaml\ntask: own\nprocess_results: !function code_{module}.process\n"
        add(task_folder, include)
        assert refusal(["own"], task_folder) == f"task own: it needs the package {module}, {remedy}"


def test_a_metric_whose_code_is_on_the_hub_is_refused(task_folder, only_own):
    add(task_folder, "include: places.yaml\ntask: own\nmetric_list: [{metric: wer, hf_evaluate: true}]\n")
    expected = "task own: metric wer is code that the package evaluate fetches from the hub; such code is not run"
    assert refusal(["own"], task_folder) == expected


def test_files_that_cannot_be_read_are_named(task_folder, only_own, tmp_path):
    assert "no such folder" in refusal(["animals"], tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(["animals"], empty).endswith("no task in it, expected YAML files with the key task or group")
    add(task_folder, "task: [own\n", "broken.yaml")
    assert refusal(["animals"], task_folder).startswith(f"{task_folder}/broken.yaml: cannot be read as a task (")
    add(task_folder, "task: own\ninclude: absent.yaml\n", "broken.yaml")
    assert "absent.yaml" in refusal(["animals"], task_folder)
    (task_folder / "broken.yaml").unlink()
    (task_folder / "animals-test.jsonl").unlink()
    assert refusal(["animals"], task_folder).startswith("task animals: its data set cannot be read (FileNotFoundError")


def test_a_data_set_that_the_hub_does_not_give_is_one_line(task_folder, only_own, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    def repo_info(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    add(task_folder, "task: own\ndataset_path: nobody/nothing\n")
    assert refusal(["own"], task_folder) == (
        "task own: dataset nobody/nothing: could not be read from the hub (Name or service not known); check the "
        "network, log in with `hf auth login` and accept the license on its page if it is gated, or give a local copy "
        "with suite.include_path=FOLDER, whose task reads it"
    )


def test_groups_and_tags_are_expanded(task_folder, only_own):
    add(task_folder, "group: zoo\ntask: [animals, {group: inner, task: [places]}]\n")
    loaded = load_tasks(["zoo"], task_folder)
    assert list(loaded.tasks) == ["animals", "places"]
    assert set(loaded.groups) == {"zoo", "zoo::inner"}
    add(task_folder, "include: animals.yaml\ntask: own\ntag: mine\n")
    assert list(load_tasks(["mine"], task_folder).tasks) == ["own"]
