"""Settings that follow the memory of a GPU, and what is said when it runs out."""

import pytest
import torch

from sftmix.distributed.device import Device
from sftmix.errors import InputError
from sftmix.estimate.shape import PUBLISHED
from sftmix.stages import memory_choice
from sftmix.stages.memory_choice import choose_memory_settings, out_of_memory, setup_of, shape_of
from sftmix.stages.pipeline import run_pipeline
from sftmix.stages.workload import Workload

EIGHT, FOUR = (Device("gpu", "bf16-mixed", "packed", "fsdp", n) for n in (8, 4))
ONE = Device("gpu", "bf16-mixed", "packed")
LLAMA = PUBLISHED["meta-llama/Llama-3.1-8B"]
WORK = Workload(100, 10_000, largest=8192, num_micro_batches=2, longest_unit=1024)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr(memory_choice, "config_file", lambda *_: None)
    monkeypatch.setattr(memory_choice, "has_varlen", lambda: True)


@pytest.mark.parametrize(
    ("overrides", "device", "memory_gib", "chosen"),
    [
        (["data=alpaca"], EIGHT, 79.1, ("none", None)),
        (["data=ultrachat"], EIGHT, 79.1, ("none", None)),
        (["data=ultrachat"], EIGHT, 44.4, ("full", None)),
        (["data=ultrachat"], FOUR, 79.1, ("full", None)),
        (["data=ultrachat"], FOUR, 44.4, ("full", False)),
        (["data=ultrachat", "model/lora=default"], ONE, 79.1, ("none", None)),
        (["data=ultrachat", "model/lora=default", "trainer.attention=sdpa"], ONE, 79.1, ("full", None)),
        (["data=ultrachat"], ONE, 23.5, ("full", None)),  # nothing fits
    ],
)
def test_the_first_settings_that_fit_are_chosen(compose, overrides, device, memory_gib, chosen):
    config = compose("model=llama", *overrides)
    found, said = choose_memory_settings(config, device, [config.model], memory_gib)
    assert (config.trainer.activation_checkpointing, config.trainer.accumulate_whole) == chosen
    assert found == device._replace(chosen=said), "Llama-3.1-8B is shared by several GPUs"
    assert ("trainer." in (said or "")) == (chosen != ("none", None))


GEMMA = ["model=gemma", "data=alpaca"]


@pytest.mark.parametrize(
    ("overrides", "device", "memory_gib", "strategy"),
    [
        (GEMMA, EIGHT, 79.1, "ddp"),
        (GEMMA, EIGHT, 44.4, "fsdp"),
        (["model=llama", "data=alpaca"], EIGHT, 79.1, "fsdp"),
        (["model=llama", "data=alpaca", "model/lora=default"], EIGHT, 79.1, "ddp"),
        # what decides by itself, or is unknown
        ([*GEMMA, "trainer=fsdp"], EIGHT, 79.1, "fsdp"),
        ([*GEMMA, "trainer.accumulate_whole=true"], EIGHT, 79.1, "fsdp"),
        ([*GEMMA, "confidence.checkpoints=[a]"], EIGHT, 79.1, "fsdp"),
        (GEMMA, EIGHT._replace(num_nodes=2), 79.1, "fsdp"),
        (GEMMA, EIGHT._replace(precision="32-true"), 79.1, "fsdp"),
        (["model=gemma2", "data=alpaca"], EIGHT, 79.1, "fsdp"),
        (GEMMA, Device("cpu", "32-true", "padded", "fsdp", 2), 79.1, "fsdp"),
        (GEMMA, ONE, 79.1, "single"),
    ],
)
def test_each_gpu_holds_the_model_if_it_fits_with_a_margin(compose, overrides, device, memory_gib, strategy):
    config = compose(*overrides)
    found, said = choose_memory_settings(config, device, [config.model], memory_gib)
    assert found == device._replace(strategy=strategy, chosen=said)
    if strategy == "ddp":
        assert said.startswith("DDP: ")
        assert (config.trainer.activation_checkpointing, config.trainer.accumulate_whole) == ("none", None)


def test_a_larger_reference_counts_for_the_strategy_too(compose):
    config = compose(*GEMMA, "model@reference.model=llama")
    found, said = choose_memory_settings(config, EIGHT, [config.model, config.reference.model], 79.1)
    assert found.strategy == "fsdp"
    assert said.startswith("FSDP2: with DDP 1")


def test_given_settings_are_kept(compose):
    given = ["trainer.activation_checkpointing=none", "trainer.accumulate_whole=true"]
    config = compose("model=llama", "data=ultrachat", *given)
    assert choose_memory_settings(config, FOUR, [config.model], 10.0) == (FOUR, None)
    assert (config.trainer.activation_checkpointing, config.trainer.accumulate_whole) == ("none", True)


def test_a_model_whose_memory_is_unknown_changes_nothing(compose):
    config = compose("model=gemma2", "data=ultrachat")
    assert choose_memory_settings(config, FOUR, [config.model], 10.0) == (FOUR, None)
    assert config.trainer.activation_checkpointing == "none"


@pytest.mark.parametrize(
    ("overrides", "device", "why"),
    [
        ([], Device("cpu", "32-true", "grouped"), "it is computed for GPUs only"),
        ([], Device("gpu", "32-true", "packed"), "only precision bf16-mixed was simulated"),
        (["trainer.loss=dense"], ONE, "were not simulated"),
        ([], ONE._replace(attention="eager"), "were not simulated"),
        (["model/lora=default", "model.lora.target_modules=[q_proj]"], ONE, "only adapters on all linear layers"),
    ],
)
def test_what_was_not_simulated_has_no_setup(compose, overrides, device, why):
    config = compose(*overrides)
    assert why in setup_of(config.trainer, device, config.model, WORK)
    assert "family gemma2 was not simulated" in shape_of({"model_type": "gemma2"})


def test_out_of_memory_names_what_helps_with_its_effect(compose):
    config = compose("model=llama", "data=alpaca")
    said = str(out_of_memory(config, ONE._replace(attention="sdpa"), LLAMA, WORK, 79.1))
    assert said.startswith("out of memory: a step of llama does not fit a GPU of 79.1 GiB (8,192 tokens in the largest")
    assert "; GiB with these settings added one after the other: trainer.attention=torch_varlen " in said
    assert "or with model/lora=default" in said
    assert "does another process use the GPU?" in str(out_of_memory(config, EIGHT, LLAMA, WORK, 139.8))
    said = str(out_of_memory(config, ONE, {"model_type": "mixtral"}, WORK, 79.1))
    assert "trainer.activation_checkpointing=full" in said
    assert "without predictions: family mixtral was not simulated" in said


def test_training_that_runs_out_of_memory_ends_with_one_line(compose, small_overrides, tmp_path, monkeypatch):
    def run_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr("sftmix.stages.train.fit", run_out)
    with pytest.raises(InputError, match=r"^out of memory: a step of tiny .* a lower trainer\.micro_batch_tokens, "):
        run_pipeline(compose(*small_overrides, "recipe=ntp", f"root={tmp_path}"))


def test_scoring_that_runs_out_of_memory_ends_with_one_line(compose, small_run, small_overrides, tmp_path, monkeypatch):
    def run_out(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    _, plan = small_run
    monkeypatch.setattr("sftmix.stages.confidence.score", run_out)
    again = compose(*small_overrides, f"confidence.checkpoints=[{plan.target.folder}/model]", f"root={tmp_path}")
    with pytest.raises(InputError, match=r"^out of memory: scoring .* lower confidence\.batch_tokens=8192"):
        run_pipeline(again)
