"""The command that repeats a run uses exactly the config that the run recorded."""

import shlex

import hydra
import pytest

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.config.schema import to_dict
from sftmix.errors import InputError
from sftmix.provenance.rerun import rerun as rerun_in_hydra
from sftmix.stages.device_choice import choose_device
from sftmix.stages.plan import make_plan
from sftmix.sweep import CONFIG_FILE
from sftmix.sweep.manifest import read_config


@pytest.fixture
def rerun(conf):
    """The function, with Hydra initialized as in report.py."""

    def called(run):
        with hydra.initialize_config_dir(str(conf), version_base="1.3"):
            return rerun_in_hydra(run)

    return called


@pytest.fixture
def record(compose, tmp_path):
    """A function that writes the metadata of a run whose root is elsewhere."""

    def written(*overrides, **changes):
        config = {**to_dict(compose(*overrides)), "root": str(tmp_path / "elsewhere")}
        metadata = {"command": ["train.py", *overrides], "config": config, "git": None, **changes}
        write_json(tmp_path / "run.json", metadata)
        return tmp_path

    return written


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["model.lr=0.01"],  # the peak of the recipe follows it
        ["model/lora=default", "model/lora@reference.model=none"],
        ["data=own", r"data.path='a, b = \'d/e\f.json'", "data.columns={output: 'Answer: yes'}"],
        ["data=own", "data.path='x${seed}.json'"],
        ["data.groups=[high, '1', 'null']", "data.limit=7", "confidence.checkpoints=['/a b/c', d]"],
    ],
    ids=" ".join,
)
def test_the_recorded_config_is_read_back_as_it_was(record, given, rerun):
    run = record(*[o.replace("${", r"\${") for o in given])
    arguments, config = read_config([str(run / "run.json")])
    assert to_dict(config) == read_json(run / "run.json")["config"]
    assert arguments == read_json(run / "run.json")["command"][1:]
    line = rerun(run).splitlines()[0]
    assert shlex.split(line) == ["python", "train.py", CONFIG_FILE, str(run / "run.json")]


def test_a_run_is_repeated_in_another_root(record):
    run = record("seed=5")
    arguments, config = read_config([str(run / "run.json"), "root=here"])
    assert (config.root, config.seed, arguments[-1]) == ("here", 5, "root=here")
    for wrong in ([], ["a", "b"], ["a", "seed=1"], ["a", "root=b", "root=c"]):
        with pytest.raises(InputError, match=r"--config-file: expected one file, run\.json of a run"):
            read_config(wrong)


@pytest.mark.slow
def test_every_artifact_of_a_run_names_a_command_that_means_the_same_artifacts(small_run, rerun):
    _, plan = small_run
    for artifact in (plan.reference, plan.confidence, plan.target):
        line, *notes = rerun(artifact.folder).splitlines()
        again = read_config(shlex.split(line)[3:])[1]
        assert to_dict(again) == read_json(artifact.folder / "run.json")["config"]
        assert make_plan(again, choose_device(again.trainer)).target.fingerprint == plan.target.fingerprint
        assert any("the run exists" in text for text in notes)


def test_another_commit_and_changes_are_reported(record, monkeypatch, rerun):
    from sftmix.provenance import rerun as module

    monkeypatch.setattr(module, "git_state", lambda: {"commit": "b" * 40, "changed": True})
    text = rerun(record("seed=5", git={"commit": "a" * 40, "changed": True}))
    assert "# recorded command: python train.py seed=5" in text
    assert f"# made at commit {'a' * 40} with uncommitted changes" in text
    assert f"this checkout is at {'b' * 40}" in text
    assert "# this checkout has uncommitted changes" in text
    assert "the run exists" not in text
    monkeypatch.setattr(module, "git_state", lambda: {"commit": "a" * 40, "changed": False})
    assert len(rerun(record(git={"commit": "a" * 40, "changed": False})).splitlines()) == 2
    assert "made outside a checkout" in rerun(record())


def test_a_record_of_an_earlier_version_gets_defaults_that_are_reported(record, compose, rerun):
    config = to_dict(compose("seed=5"))
    del config["trainer"]["keep"]
    text = rerun(record(config=config))
    assert "# not in the record, default values are used: trainer.keep" in text
    again = read_config(shlex.split(text.splitlines()[0])[3:])[1]
    assert to_dict(again) == to_dict(compose("seed=5"))


def test_a_setting_that_no_longer_exists_is_refused(record, compose, rerun):
    config = to_dict(compose())
    config["recipe"]["gone"] = 1
    with pytest.raises(InputError, match=r"run\.json: not the config of a run \(.*gone.*\)"):
        rerun(record(config=config))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_file_that_holds_no_metadata_is_one_line(tmp_path, text, rerun):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: (is not JSON|is damaged|holds no config)"):
        rerun(tmp_path)
    with pytest.raises(InputError, match=r"run\.json: cannot be read"):
        rerun(tmp_path / "nowhere")
