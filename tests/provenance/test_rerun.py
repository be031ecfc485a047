"""The command that makes a run again composes the very configuration of its passport, with no setting too many."""

import shlex

import hydra
import pytest

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.config.load import from_hydra
from sftmix.config.schema import to_dict
from sftmix.errors import InputError
from sftmix.provenance.rerun import overrides_of, rerun
from sftmix.quoting import shell_command
from sftmix.stages.device_choice import choose_device
from sftmix.stages.plan import make_plan


@pytest.fixture
def choices(conf):
    """The choice of each group by default, with Hydra set up as report.py has it."""
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        composed = hydra.compose("config", return_hydra_config=True)
        yield {str(group): str(choice) for group, choice in composed.hydra.runtime.choices.items()}


def composed(*overrides):
    return from_hydra(hydra.compose("config", list(overrides)))


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["seed=3"],
        ["recipe.mixup.mu=0.5", "seed=1"],
        ["recipe=ntp"],
        ["model.lr=0.01"],  # the recipe's peak and the reference's follow it
        ["optimizer.lr=0.01"],
        ["model.init.hidden_size=64", "model@reference.model=tiny", "reference.model.init.hidden_size=32"],
        ["model/lora=default", "model.lora.r=8"],
        ["model/lora=default", "model/lora@reference.model=none"],
        ["model=llama", "data=alpaca", "model@reference.model=gemma"],
        ["data=alpaca", "data/select=longest", "data.select.k=500", "data.max_seq_len=2048"],
        ["data=alpaca_high", "trainer=ddp", "trainer.devices=2", "logger=wandb", "logger.wandb.group=mine"],
        ["data=medalpaca", "data.mixture.leave_out=[wikidoc]", "trainer.precision=bf16-mixed"],
        ["data.num_checkpoints=2"],  # the reference's follow it
        ["reference.num_checkpoints=2", "confidence.use=[1,2]"],
        ["data=own", r"data.path='a, b = \'d/e\f.json'", "data.columns={output: 'Answer: yes'}"],
        ["model=local", "model.path=/some/folder", "model.lr=3e-05", "data=own", "data.path=/x/y.json"],
        ["data.groups=[high, '1', 'null']", "data.limit=7", "confidence.checkpoints=['/a b/c', d]"],
        ["recipe.ntp.on=confident", "optimizer.betas=[0.9,0.95]", "root='~/runs of mine'"],
    ],
    ids=" ".join,
)
def test_the_fewest_overrides_compose_the_same_configuration(given, choices):
    config = composed(*given)
    arguments, unknown = overrides_of(to_dict(config), choices)
    assert to_dict(composed(*arguments)) == to_dict(config)
    assert len(arguments) <= len(given)
    assert not unknown
    again = shlex.split(shell_command(arguments))
    assert again == arguments


@pytest.mark.slow
def test_every_artifact_of_a_run_names_a_command_that_means_the_same_artifacts(small_run, choices):
    _, plan = small_run
    for artifact in (plan.reference, plan.confidence, plan.target):
        line, *said = rerun(artifact.folder, choices).splitlines()
        assert line.startswith("python train.py ")
        again = composed(*shlex.split(line)[2:])
        assert to_dict(again) == read_json(artifact.folder / "run.json")["config"]
        assert make_plan(again, choose_device(again.trainer)).target.fingerprint == plan.target.fingerprint
        assert any("it is there" in text for text in said)


def record(tmp_path, **changes):
    passport = {"config": {**to_dict(composed("seed=5")), "root": str(tmp_path / "elsewhere")}, "git": None, **changes}
    write_json(tmp_path / "run.json", passport)
    return tmp_path


def test_another_commit_and_changes_are_said(tmp_path, choices, monkeypatch):
    from sftmix.provenance import rerun as module

    monkeypatch.setattr(module, "git_state", lambda: {"commit": "b" * 40, "changed": True})
    run = record(tmp_path, git={"commit": "a" * 40, "changed": True})
    text = rerun(run, choices)
    assert "seed=5" in text.splitlines()[0]
    assert f"# made at commit {'a' * 40} with changes that no commit has" in text
    assert f"this checkout is at {'b' * 40}" in text
    assert "# this checkout has changes that no commit has" in text
    assert "it is there" not in text
    monkeypatch.setattr(module, "git_state", lambda: {"commit": "a" * 40, "changed": False})
    assert len(rerun(record(tmp_path, git={"commit": "a" * 40, "changed": False}), choices).splitlines()) == 1
    assert "made outside a checkout" in rerun(record(tmp_path), choices)


def test_a_record_of_an_earlier_version_is_completed_and_said(tmp_path, choices):
    config = to_dict(composed("seed=5"))
    del config["trainer"]["keep"]
    text = rerun(record(tmp_path, config=config), choices)
    assert "# not in the record, as they ship now: trainer.keep" in text


def test_a_setting_that_is_no_more_is_told(tmp_path, choices):
    config = to_dict(composed())
    config["recipe"]["gone"] = 1
    with pytest.raises(InputError, match=r"recipe\.gone: no such key"):
        rerun(record(tmp_path, config=config), choices)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_what_is_no_passport_is_one_line(tmp_path, choices, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: no passport of a run"):
        rerun(tmp_path, choices)
    with pytest.raises(InputError, match=r"run\.json: no passport of a run"):
        rerun(tmp_path / "nowhere", choices)
