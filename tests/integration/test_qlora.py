"""Runs with model.quantization=nf4: what they leave, resuming, scoring, several processes, and what is refused."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters import logits
from builders import fit
from forked import run_ranks
from modules import close, small_data, small_module
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.strategy import trainer_arguments
from sftmix.errors import ConfigError, InputError, Stopped
from sftmix.models.lora import QUANTIZATION, load_adapter
from sftmix.models.probes import logits_error
from sftmix.stages import inputs, reference
from sftmix.stages.pipeline import run_pipeline
from sftmix.training.module import SFTMixModule

pytest.importorskip("bitsandbytes")
from sftmix.models.quantization import quantization_of

pytestmark = pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's
LORA, NF4 = "model/lora=default", "model.quantization=nf4"


@pytest.fixture(scope="module")
def qlora_run(compose, small_overrides, tmp_path_factory):
    """Reference and target with adapters on quantized weights, and with the reference's checkpoints kept."""
    root = tmp_path_factory.mktemp("qlora")
    return run_pipeline(compose(*small_overrides, LORA, NF4, "reference.keep_checkpoints=true", f"root={root}"))


def base_of(run):
    config = read_json(run.folder / "adapter" / "adapter_config.json")
    return AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32)


def scores_of(folder, checkpoint):
    table = read_table(folder / "confidence.parquet")
    columns = (table[name] for name in ("example_id", "checkpoint", "nll"))
    return {i: nll for i, c, nll in zip(*columns, strict=True) if c == checkpoint}


def test_a_run_leaves_its_adapter_and_the_model_merged_into_the_dequantized_weights(qlora_run):
    for run in (qlora_run.reference, qlora_run.target):
        assert "-lora-nf4-" in run.folder.name
        assert not (run.folder / "model" / QUANTIZATION).exists()
        merged = AutoModelForCausalLM.from_pretrained(run.folder / "model")
        tuned = load_adapter(base_of(run), run.folder / "adapter")
        assert quantization_of(tuned) == "nf4"
        assert logits_error(logits(merged), logits(tuned)) < 1e-5
        record, metrics = (read_json(run.folder / name) for name in ("run.json", "metrics.json"))
        assert record["config"]["model"]["quantization"] == "nf4"
        assert record["packages"]["bitsandbytes"]
        assert record["cost"]["parameters"] == sum(p.numel() for p in base_of(run).parameters()) + sum(
            w.numel() for w in load_file(run.folder / "adapter" / "adapter_model.safetensors").values()
        )
        assert metrics["val_loss"] < metrics["val_loss_before"]


def test_the_reference_scores_with_its_quantized_base(qlora_run):
    """The last checkpoint's held-out nats are those that the run itself measured at its end."""
    own = read_table(qlora_run.reference.folder / "val.parquet")
    last = scores_of(qlora_run.confidence.folder, 2)
    assert own["example_id"]
    assert [last[i] for i in own["example_id"]] == pytest.approx(own["nll"], rel=1e-5)


def test_quantization_has_artifacts_of_its_own(qlora_run, compose, small_overrides):
    from sftmix.distributed.device import Device
    from sftmix.stages.plan import make_plan

    plan = make_plan(compose(*small_overrides, LORA), Device("cpu", "32-true", "grouped"))
    for stage in ("reference", "confidence", "target"):
        assert getattr(plan, stage).fingerprint != getattr(qlora_run, stage).fingerprint


def test_adapters_of_another_run_are_scored_with_their_quantized_base(qlora_run, run, tmp_path):
    folder = shutil.copytree(reference.checkpoint_folders(qlora_run.reference.folder)[-1], tmp_path / "adapter")
    plain = shutil.copytree(folder, tmp_path / "plain")
    (plain / QUANTIZATION).unlink()
    plan = run(f"confidence.checkpoints=[{folder},{plain}]", "mode=confidence")
    expected = scores_of(qlora_run.confidence.folder, 2)
    assert scores_of(plan.confidence.folder, 1) == expected
    assert scores_of(plan.confidence.folder, 2) != pytest.approx(expected, rel=1e-5)


def test_a_run_that_was_cut_off_goes_on_to_the_same_adapters(run, tmp_path, monkeypatch, capsys):
    """A training state holds the adapters only."""
    settings = (LORA, NF4, "recipe=ntp", "trainer.save_every_n_steps=2")
    expected = run(*settings, root=tmp_path / "whole")
    line = "adapters merged into the dequantized weights: the logits of model/ differ by "
    assert float(capsys.readouterr().out.partition(line)[2].split()[0]) < 1e-5
    step = SFTMixModule.training_step

    def cut(self, batch, batch_idx):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped after step 3"):
        patch.setattr(SFTMixModule, "training_step", cut)
        run(*settings, root=tmp_path / "cut")
    saved = [name for f in (tmp_path / "cut").rglob("step-*/*.safetensors") for name in load_file(f)]
    assert any(".lora_A." in name for name in saved)
    assert not [name for name in saved if name.startswith("state_dict") and ".lora_" not in name]
    got = run(*settings, root=tmp_path / "cut")
    tensors = [load_file(p.target.folder / "adapter" / "adapter_model.safetensors") for p in (expected, got)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def trained(ranks, folder, strategy="single", **options):
    """Tune adapters on quantized weights in a plain Trainer, and return them."""
    module = small_module(ranks, strategy=strategy, lora=True, quantized=True, dropout=0.0)
    for name, value in options.items():
        getattr(module.lm, name)(*value)
    arguments = {**trainer_arguments(strategy, "cpu", "32-true", ranks), "max_epochs": 2, "log_every_n_steps": 1}
    fit(module, small_data(), default_root_dir=folder, **arguments)
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def test_two_processes_of_ddp_and_checkpointed_activations_tune_the_same_adapters(tmp_path):
    """Only the first process has read weights."""
    one = trained(SINGLE, tmp_path)
    assert not close(one, {name: torch.zeros_like(p) for name, p in one.items()})
    assert close(trained(SINGLE, tmp_path, checkpoint_activations=()), one)
    for two in run_ranks(2, lambda ranks: trained(ranks, tmp_path, "ddp"), tmp_path):
        assert close(two, one)


def test_fsdp_does_not_shard_quantized_weights(tmp_path):
    from sftmix.distributed.sharding import shard

    with pytest.raises(InputError, match="FSDP2 does not shard quantized weights, choose DDP"):
        shard(small_module(lora=True, quantized=True).lm, torch.device("cpu"), bfloat16=False)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((NF4,), r"model\.quantization=nf4: quantized weights are not tuned.*choose model/lora=default"),
        (
            (LORA, "model/lora@reference.model=none", "reference.model.quantization=nf4"),
            r"reference\.model\.quantization=nf4: .*choose model/lora@reference\.model=default",
        ),
        ((LORA, "model.quantization=fp4"), r"model\.quantization=fp4: expected one of nf4"),
    ],
)
def test_settings_that_cannot_take_effect_are_refused(compose, overrides, says):
    with pytest.raises(ConfigError, match=says):
        compose(*overrides)


def test_a_reference_follows_the_quantization_of_the_target(compose):
    assert compose(LORA, NF4).reference.model.quantization == "nf4"
    assert compose(LORA, NF4, "model/lora@reference.model=none").reference.model.quantization is None


def test_a_missing_package_is_reported_before_anything_is_read(run, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"nf4: the package bitsandbytes is not installed \(pip install 'sftmix\[quan"):
        run(LORA, NF4, root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_family_that_cannot_be_quantized_is_refused_before_anything_is_trained(compose, tmp_path, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel

    from builders import new_tiny_tokenizer

    monkeypatch.setattr(reference, "tune", None)
    tokenizer = new_tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}{{ eos_token }}"
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = compose("model=local", f"model.path={tmp_path / 'gpt2'}", LORA, NF4, "trainer=cpu", f"root={tmp_path}")
    with pytest.raises(InputError, match="model family gpt2 has weights that are not of linear layers"):
        run_pipeline(config)


@pytest.mark.slow
def test_a_real_model_with_adapters_on_quantized_weights_learns(compose, shared, tmp_path):
    """Beside the same run without quantization."""
    settings = (
        "model=local",
        f"model.path={shared / 'models/stories260K'}",
        "model.lr=1e-3",
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
    plain, quantized = (run_pipeline(compose(*settings, *more)).target.folder for more in ((), (NF4,)))
    before, after = (read_json(plain / "metrics.json")[name] for name in ("val_loss_before", "val_loss"))
    metrics = read_json(quantized / "metrics.json")
    cost = metrics["val_loss_before"] - before  # of the quantization: 0.14 nats for this small model
    assert 0 < cost < 0.25
    assert metrics["val_loss"] < metrics["val_loss_before"] - 0.5
    assert metrics["val_loss"] - after < cost, "adapters make up for a part of it"
    merged, base = (AutoModelForCausalLM.from_pretrained(quantized / "model"), shared / "models/stories260K")
    tuned = load_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), quantized / "adapter")
    assert logits_error(logits(merged), logits(tuned)) < 1e-5
    assert json.loads((quantized / "adapter" / QUANTIZATION).read_text())["bnb_4bit_quant_type"] == "nf4"
