"""The three stages with LoRA on the reference, on the target, on both: what they leave and what is shared."""

import json
import os
import shutil
import signal

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.errors import InputError, Stopped
from sftmix.stages import reference, target
from sftmix.stages.pipeline import run_pipeline
from sftmix.training.module import SFTMixModule

pytestmark = pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's
IDS = torch.arange(3, 11)[None]
LORA, FULL_REFERENCE, LORA_REFERENCE = (
    "model/lora=default",
    "model/lora@reference.model=none",
    "model/lora@reference.model=default",
)


@pytest.fixture(scope="module")
def lora_run(compose, small_overrides, tmp_path_factory):
    """Reference and target with LoRA, and with the reference's checkpoints kept."""
    root = tmp_path_factory.mktemp("lora")
    return run_pipeline(compose(*small_overrides, LORA, "reference.keep_checkpoints=true", f"root={root}"))


def logits(causal_lm):
    with torch.no_grad():
        return causal_lm.eval()(input_ids=IDS).logits


def scores_of(folder, checkpoint):
    table = read_table(folder / "confidence.parquet")
    columns = (table[name] for name in ("example_id", "checkpoint", "nll"))
    return {i: nll for i, c, nll in zip(*columns, strict=True) if c == checkpoint}


def test_a_run_leaves_its_adapter_and_the_merged_model(lora_run):
    for run in (lora_run.reference, lora_run.target):
        assert "-lora-" in run.folder.name
        assert not (run.folder / "model" / "adapter_config.json").exists()
        merged = AutoModelForCausalLM.from_pretrained(run.folder / "model")
        apart = AutoPeftModelForCausalLM.from_pretrained(run.folder / "adapter")
        torch.testing.assert_close(logits(merged), logits(apart), rtol=1e-4, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(apart.peft_config["default"].base_model_name_or_path)
        assert (logits(merged) - logits(base)).abs().max() > 1e-2
        own = AutoTokenizer.from_pretrained(run.folder / "adapter")
        assert own.chat_template == AutoTokenizer.from_pretrained(run.folder / "model").chat_template
        metrics = read_json(run.folder / "metrics.json")
        assert metrics["val_loss"] < metrics["val_loss_before"]
        assert metrics["lr"] == 0.01, "ten times the tiny model's 1e-3"


def test_the_checkpoints_are_adapters_and_the_last_is_the_tuned_one(lora_run):
    folders = reference.checkpoint_folders(lora_run.reference.folder)
    assert [f.name for f in folders] == ["step-000004", "adapter"]
    for folder in folders:
        assert [f.name for f in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
    first, last = (load_file(f / "adapter_model.safetensors") for f in folders)
    assert set(first) == set(last)
    assert not any(torch.equal(first[name], last[name]) for name in first)


def test_scores_are_those_of_base_and_adapter(lora_run):
    """The last checkpoint's held-out nats are those that the run itself measured at its end; the first's are others."""
    own = read_table(lora_run.reference.folder / "val.parquet")
    last, first = (scores_of(lora_run.confidence.folder, c) for c in (2, 1))
    assert own["example_id"]
    assert [last[i] for i in own["example_id"]] == pytest.approx(own["nll"], rel=1e-5)
    assert [first[i] for i in own["example_id"]] != pytest.approx(own["nll"], rel=1e-3)


def test_the_same_call_gives_the_same_bits(lora_run, run):
    again = run(LORA)
    for before, now in ((lora_run.reference, again.reference), (lora_run.target, again.target)):
        tensors = [load_file(p.folder / "adapter" / "adapter_model.safetensors") for p in (before, now)]
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
        configs = [json.loads((p.folder / "adapter" / "adapter_config.json").read_text()) for p in (before, now)]
        assert {**configs[0], "base_model_name_or_path": 0} == {**configs[1], "base_model_name_or_path": 0}
    assert not (again.reference.folder / "checkpoints").exists(), "they go once they are scored"
    assert (again.reference.folder / "adapter").is_dir()


def test_a_target_with_adapters_takes_a_full_reference_and_shares_it(copy_of_run, run, monkeypatch):
    """The reference is the one that the run without LoRA has tuned."""
    plan, root = copy_of_run
    monkeypatch.setattr(reference, "tune", None)
    mixed = run(LORA, FULL_REFERENCE, root=root)
    assert mixed.reference.fingerprint == plan.reference.fingerprint
    assert mixed.confidence.fingerprint == plan.confidence.fingerprint
    assert (mixed.target.folder / "adapter").is_dir()
    assert not (mixed.reference.folder / "adapter").exists()


def test_a_full_target_takes_a_reference_with_adapters(lora_run, run, monkeypatch, tmp_path):
    shutil.copytree(lora_run.target.root, tmp_path / "runs")
    monkeypatch.setattr(reference, "tune", None)
    mixed = run(LORA_REFERENCE, root=tmp_path / "runs")
    assert mixed.reference.fingerprint == lora_run.reference.fingerprint
    assert mixed.confidence.fingerprint == lora_run.confidence.fingerprint
    assert not (mixed.target.folder / "adapter").exists()
    assert read_json(mixed.target.folder / "metrics.json")["lr"] == 1e-3
    split, other = (read_table(p.target.folder / "split.parquet")["subset"] for p in (mixed, lora_run))
    assert split == other


def test_the_ntp_baseline_with_adapters_is_the_reference(lora_run, run, monkeypatch, capsys):
    monkeypatch.setattr(reference, "tune", None)
    baseline = run("recipe=ntp", "recipe.global_batch_size=16", LORA, root=lora_run.target.root)
    assert baseline.target.folder == lora_run.reference.folder
    assert "already there" in capsys.readouterr().out


def test_adapters_of_another_trainer_are_scored_with_the_base_that_they_name(lora_run, run, tmp_path):
    """One has no tokenizer: its base has."""
    folders = []
    for folder in reference.checkpoint_folders(lora_run.reference.folder):
        folders.append(shutil.copytree(folder, tmp_path / "other" / folder.name))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folders[1] / file).unlink()
    whole = lora_run.reference.folder / "model"
    plan = run(f"confidence.checkpoints=[{folders[0]},{folders[1]},{whole}]")
    assert plan.reference is None
    for number in (1, 2):
        assert scores_of(plan.confidence.folder, number) == scores_of(lora_run.confidence.folder, number)
    assert scores_of(plan.confidence.folder, 3) == pytest.approx(scores_of(plan.confidence.folder, 2), rel=1e-4)


def test_an_adapter_counts_with_its_base(lora_run, compose, small_overrides, tmp_path):
    from sftmix.distributed.device import Device
    from sftmix.stages.plan import make_plan

    def fingerprint():
        overrides = (*small_overrides, f"confidence.checkpoints=[{adapter}]", f"root={tmp_path}")
        return make_plan(compose(*overrides), Device("cpu", "32-true", "grouped")).confidence.fingerprint

    adapter = shutil.copytree(lora_run.reference.folder / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    base = shutil.copytree(config["base_model_name_or_path"], tmp_path / "base")
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    before = fingerprint()
    assert fingerprint() == before
    other = AutoModelForCausalLM.from_pretrained(base)
    other.lm_head.weight.data[0, 0] += 1
    other.save_pretrained(base)
    assert fingerprint() != before


def test_a_base_on_the_hub_is_read_at_the_commit_of_the_day_and_it_is_remembered(
    lora_run, compose, small_overrides, tmp_path, monkeypatch
):
    from sftmix.stages import inputs
    from sftmix.stages.plan import Device, make_plan

    adapter = shutil.copytree(lora_run.reference.folder / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/name"}))
    config = compose(*small_overrides, f"confidence.checkpoints=[{adapter}]", f"root={tmp_path}")
    inputs.check_inputs(config)
    monkeypatch.setattr(inputs, "newest_commit", lambda kind, hub_id, _: "b" * 40)
    inputs.pin_revisions(config)
    monkeypatch.setattr(inputs, "newest_commit", None)
    inputs.pin_revisions(config)
    assert inputs.checkpoint_base(config, adapter) == ("org/name", "b" * 40)
    asked = []
    monkeypatch.setattr(inputs, "check_on_hub", lambda *a: asked.append(a[:3]))
    plan = make_plan(config, Device("cpu", "32-true", "grouped"))
    inputs.check_hub(config, plan.tunes_reference)
    assert asked == [("model", "org/name", "b" * 40)]


def test_an_adapter_without_its_base_is_refused_before_anything_is_trained(lora_run, run, tmp_path, monkeypatch):
    monkeypatch.setattr(target, "tune", None)
    adapter = shutil.copytree(lora_run.reference.folder / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone"}))
    with pytest.raises(InputError, match=r"confidence\.checkpoints=.*without its base, there is no folder /gone"):
        run(f"confidence.checkpoints=[{adapter}]", root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_layers_that_do_not_exist_are_told_before_anything_is_trained(run, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "tune", None)
    with pytest.raises(InputError, match="q_prj is not a linear layer of model family llama, which has q_proj"):
        run(LORA, FULL_REFERENCE, "model.lora.target_modules=[q_prj]")
    assert not [f for f in tmp_path.glob("*-*") if f.is_dir()]


def test_frozen_weights_in_bfloat16_change_no_bit_of_a_run(compose, tiny_tokenizer, tmp_path, monkeypatch):
    """As on a GPU, where a base of bfloat16 weights is computed with under autocast."""
    from sftmix.models.export import export
    from sftmix.models.tiny import tiny_llama
    from sftmix.stages import language_model

    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 256, "seed": 5}
    tiny_tokenizer.chat_template = "{{ eos_token }}"
    export(tiny_llama(tiny_tokenizer, **shape), tiny_tokenizer, tmp_path / "base", "bfloat16", 1)
    settings = (
        "model=local",
        f"model.path={tmp_path / 'base'}",
        "model.lr=1e-3",
        LORA,
        "recipe=ntp",
        "recipe.global_batch_size=16",
        "data.demo.num_examples=60",
        "data.epochs=1",
        "data.num_checkpoints=1",
        "data.val_fraction=0.3",
        "trainer=cpu",
        "trainer.precision=bf16-mixed",
        "trainer.progress_bar=false",
    )
    held = []

    def hold(causal_lm, names):
        plain(causal_lm, names)
        held.append(causal_lm.model.layers[0].mlp.up_proj.base_layer.weight.dtype)

    def nll(root, holding):
        monkeypatch.setattr(language_model, "hold_in_bfloat16", holding)
        plan = run_pipeline(compose(*settings, f"root={tmp_path / root}"))
        return read_table(plan.target.folder / "val.parquet")["nll"]

    plain = language_model.hold_in_bfloat16
    assert nll("held", hold) == nll("cast", lambda *_: None)
    assert held == [torch.bfloat16]


@pytest.mark.slow
def test_a_real_model_with_adapters_names_its_folder_and_learns(compose, shared, tmp_path):
    model = shared / "models/stories260K"
    plan = run_pipeline(
        compose(
            "model=local",
            f"model.path={model}",
            "model.lr=1e-3",
            "model.dtype=bfloat16",
            LORA,
            "data=alpaca",
            f"data.path={shared / 'data/alpaca/alpaca_data.json'}",
            "data.limit=200",
            "data.val_fraction=0.5",
            "data.epochs=1",
            "reference.num_checkpoints=2",
            "scheduler.warmup_ratio=0.3",
            "trainer=cpu",
            "trainer.progress_bar=false",
            f"root={tmp_path}",
        )
    )
    metrics = read_json(plan.target.folder / "metrics.json")
    assert metrics["val_loss"] < metrics["val_loss_before"] - 0.1
    config = read_json(plan.target.folder / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(model.resolve())
    assert AutoModelForCausalLM.from_pretrained(plan.target.folder / "model", dtype="auto").dtype == torch.bfloat16
    assert not list(tmp_path.glob("base-*")), "a folder needs no copy"


def test_a_run_that_was_cut_off_goes_on_to_the_same_adapters(run, tmp_path, monkeypatch):
    settings = (LORA, "recipe=ntp", "trainer.save_every_n_steps=2")
    expected = run(*settings, root=tmp_path / "whole")
    step = SFTMixModule.training_step

    def cut(self, batch, batch_idx):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped after step 3"):
        patch.setattr(SFTMixModule, "training_step", cut)
        run(*settings, root=tmp_path / "cut")
    got = run(*settings, root=tmp_path / "cut")
    tensors = [load_file(p.target.folder / "adapter" / "adapter_model.safetensors") for p in (expected, got)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_tune_the_adapters_of_one(run, tmp_path, strategy):
    settings = (LORA, "model.lora.dropout=0")
    one = run(*settings, root=tmp_path / "one")
    two = run(
        *settings,
        f"trainer={strategy}",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        root=tmp_path / "two",
    )
    nll = [read_table(p.target.folder / "val.parquet")["nll"] for p in (one, two)]
    assert nll[1] == pytest.approx(nll[0], rel=1e-5)
    apart = AutoPeftModelForCausalLM.from_pretrained(two.target.folder / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(two.target.folder / "model")
    torch.testing.assert_close(logits(merged), logits(apart), rtol=1e-4, atol=1e-5)
