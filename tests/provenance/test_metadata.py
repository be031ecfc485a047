"""The passport says what was run, on what and for how much, and nothing that is secret or names the machine."""

import hashlib
import importlib.metadata
import os
import signal
import socket
from types import SimpleNamespace

import pytest

from sftmix.artifacts.manifest import read_json
from sftmix.distributed.device import num_cores
from sftmix.errors import Stopped
from sftmix.provenance.metadata import Effort, environment
from sftmix.stages.context import RunContext
from sftmix.training.module import SFTMixModule


@pytest.fixture
def passports(small_run):
    config, plan = small_run
    folders = [artifact.folder for artifact in (plan.reference, plan.confidence, plan.target)]
    return config, plan, [read_json(folder / "run.json") for folder in folders]


def test_each_stage_says_which_it_is_and_what_it_read(passports):
    _, plan, records = passports
    assert [record["stage"] for record in records] == ["reference", "confidence", "target"]
    assert [record["confidence"] for record in records[:2]] == [None, None]
    artifact = plan.confidence
    assert records[2]["confidence"] == {"folder": artifact.folder.name, "fingerprint": artifact.fingerprint}
    assert all(record["seeds"] == {"target": 0, "reference": 0, "split": 0} for record in records)


def test_the_data_are_the_same_for_all_stages_and_the_hashes_are_of_what_was_used(passports):
    config, _, records = passports
    assert len({record["data"]["fingerprint"] for record in records}) == 1
    encoded = RunContext(config).encoded(config.model)
    template = hashlib.sha256(encoded.tokenizer.chat_template.encode()).hexdigest()
    for record in records:
        assert record["data"]["template"] == template
        assert (record["data"]["train_examples"], record["data"]["val_examples"]) == (106, 14)
    assert len({record["data"]["tokenizer"] for record in records}) == 1


def test_tokens_and_operations_are_those_that_were_computed(passports):
    config, plan, records = passports
    encoded = RunContext(config).encoded(config.model)
    trained = int(encoded.train.lengths.sum()) * config.data.epochs
    scored = int(encoded.train.lengths.sum() + encoded.val.lengths.sum()) * 2  # checkpoints
    assert [record["tokens"] for record in records] == [trained, scored, trained]
    from transformers import AutoModelForCausalLM

    weights = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(plan.target.folder / "model").parameters())
    for record, per_token in zip(records, (6, 2, 6), strict=True):
        cost = record["cost"]
        assert cost["parameters"] == weights
        assert cost["flops"] == per_token * weights * record["tokens"]
        assert cost["core_hours"] == pytest.approx(num_cores() * record["seconds"] / 3600, abs=1e-4)
        assert 0 < record["seconds"] < 600


def test_adapters_cost_no_gradient_of_frozen_weights():
    assert Effort(1.0, 10, 100, 100).num_flops == 6 * 100 * 10
    assert Effort(1.0, 10, 100, 0).num_flops == 2 * 100 * 10
    assert Effort(1.0, 10, 100, 5).num_flops == (4 * 100 + 2 * 5) * 10


def test_the_machine_is_described_and_not_named(passports):
    _, _, records = passports
    for record in records:
        hardware = record["hardware"]
        assert hardware["cores"] == num_cores()
        assert hardware["gpus"] == []
        assert hardware["cpu"]
        assert hardware["memory_gib"] > 0
        assert socket.gethostname() not in str(hardware)
        assert record["git"] is None or len(record["git"]["commit"]) == 40


def test_the_environment_is_names_and_versions_alone(passports):
    _, _, records = passports
    entries = records[0]["environment"]
    assert f"torch=={importlib.metadata.version('torch')}" in entries
    assert entries == sorted(set(entries), key=str.lower)
    assert all(entry.count("==") == 1 and "://" not in entry and "@" not in entry for entry in entries)


def test_an_installed_address_stays_out(tmp_path, monkeypatch):
    folder = tmp_path / "secretive-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: secretive\nVersion: 1.0\n")
    (folder / "direct_url.json").write_text('{"url": "https://user:t0ken@index.example/secretive"}')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "secretive==1.0" in environment()
    assert "t0ken" not in str(environment())


def test_no_key_of_the_environment_or_of_the_hub_is_in_it(run, monkeypatch, tmp_path):
    secret = "hf_" + "s3cret" * 5
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "token").write_text(secret)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hub" / "token"))
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("SOME_VARIABLE", "it5-value")
    plan = run("recipe=ntp")
    text = (plan.target.folder / "run.json").read_text()
    assert secret not in text
    assert "it5-value" not in text
    assert "SOME_VARIABLE" not in text
    assert "environ" not in read_json(plan.target.folder / "run.json")


def test_a_run_that_goes_on_adds_up_time_and_tokens(run, tmp_path, monkeypatch):
    ntp = ("recipe=ntp", "trainer.save_every_n_steps=2")
    whole = read_json(run(*ntp, root=tmp_path / "whole").target.folder / "run.json")
    step = SFTMixModule.training_step
    with monkeypatch.context() as patch:

        def asked(self, batch, batch_idx):
            if self.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, batch, batch_idx)

        patch.setattr(SFTMixModule, "training_step", asked)
        with pytest.raises(Stopped):
            run(*ntp, root=tmp_path / "cut")
    newest = max((tmp_path / "cut").glob("ntp-*.partial/states/step-*"))
    before = read_json(newest / "content.json")["callbacks"]["Throughput"]["seconds"]
    assert before > 0
    from sftmix.stages import train as tuning

    clock = iter([100.0, 101.5])
    monkeypatch.setattr(tuning, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    folder = run(*ntp, root=tmp_path / "cut").target.folder
    got = read_json(folder / "run.json")
    assert got["tokens"] == whole["tokens"]
    assert got["cost"]["flops"] == whole["cost"]["flops"]
    assert got["seconds"] == pytest.approx(1.5 + before, abs=0.051)
