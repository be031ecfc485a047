"""Settings that make a step fit a GPU, and operations and bytes of a stage."""

from dataclasses import replace

import pytest

from sftmix.estimate.cost import num_flops, saved_bytes, states_bytes, step_traffic
from sftmix.estimate.fitting import NOT_COUNTED_GIB, advise, fits, peak_gib
from sftmix.estimate.hardware import HARDWARE
from sftmix.estimate.memory import TrainingSetup
from sftmix.estimate.shape import PUBLISHED, ModelShape

LLAMA = ModelShape.of(PUBLISHED["meta-llama/Llama-3.1-8B"])
EIGHT = TrainingSetup("fsdp", 8, 16384, has_mask=True)


@pytest.mark.parametrize(
    ("setup", "gib"),
    [
        (TrainingSetup("fsdp", 8, 490, has_mask=True), 20.3),
        (TrainingSetup("fsdp", 8, 4900, has_mask=True), 49.2),
        (TrainingSetup("fsdp", 8, 8192, has_mask=True), 72.9),
        (TrainingSetup("fsdp", 8, 8192, has_mask=True, checkpoints_activations=True), 22.0),
        (TrainingSetup("fsdp", 4, 7350, has_mask=True, has_micro_batches=True), 107.8),
        (TrainingSetup("fsdp", 4, 7350, True, checkpoints_activations=True, has_micro_batches=True), 59.3),
        (TrainingSetup("single", 1, 3904, has_mask=True, lora_rank=16), 47.1),
        (TrainingSetup("single", 1, 3904, has_mask=True), 137.4),
        (TrainingSetup("fsdp", 1, 3904, has_mask=True, checkpoints_activations=True), 123.6),
    ],
)
def test_a_plan_of_llama_is_within_five_percent_of_simulated_steps(setup, gib):
    """Steps of the first simulation, of which some were extrapolated from 2 and 6 layers."""
    assert peak_gib(LLAMA, setup) == pytest.approx(gib, rel=0.05)


def test_each_setting_that_is_named_lowers_the_peak_and_the_last_one_is_enough():
    memory = HARDWARE["h100"].memory_gib
    advice = advise(LLAMA, EIGHT, memory, least_tokens=1024)
    peaks = [peak_gib(LLAMA, EIGHT), *(peak for _, peak in advice.tried)]
    assert advice.tried[0][0] == "trainer.attention=torch_varlen"
    assert peaks == sorted(peaks, reverse=True)
    assert not fits(peaks[0], memory)
    for overrides, peak in advice.remedies:
        assert peak + NOT_COUNTED_GIB <= memory, overrides
    assert advice.remedies[-1][0].startswith("model/lora=default")


def test_a_setting_that_a_stronger_one_makes_unnecessary_is_left_out():
    advice = advise(LLAMA, TrainingSetup("ddp", 4, 1024), 79.1, least_tokens=1024)
    assert advice.remedies[0][0] == "trainer=fsdp trainer.devices=4"
    assert [o for o, _ in advice.tried] == ["trainer.activation_checkpointing=full", "trainer=fsdp trainer.devices=4"]


def test_a_small_gpu_is_enough_for_adapters_on_quantized_weights():
    """Which are not sharded."""
    card = HARDWARE["rtx4090"].memory_gib
    every = advise(LLAMA, TrainingSetup("single", 1, 8192), card, least_tokens=8192).remedies
    assert every[-1][0] == "model/lora=default trainer.activation_checkpointing=full model.quantization=nf4"
    setup = TrainingSetup("single", 1, 8192, lora_rank=16, checkpoints_activations=True)
    nf4 = replace(setup, is_quantized=True)
    assert not fits(peak_gib(LLAMA, setup), card)
    assert fits(peak_gib(LLAMA, nf4), card)
    advice = advise(LLAMA, setup, card, least_tokens=8192)
    assert advice.remedies[0][0] == "model.quantization=nf4"
    assert not any("fsdp" in overrides for overrides, _ in advise(LLAMA, nf4, 1.0, least_tokens=8192).tried)


def test_a_pair_is_not_divided_and_a_small_gpu_is_not_enough():
    advice = advise(LLAMA, EIGHT, 10.0, least_tokens=16384)
    assert not any("micro_batch_tokens" in overrides for overrides, _ in advice.tried)
    assert advice.remedies == []
    assert advice.lines[-1] == "none of the settings that were tried is enough"


def test_what_a_step_sends_is_gathered_weights_and_reduced_gradients():
    fsdp = TrainingSetup("fsdp", 4, 100)
    assert step_traffic(fsdp, 1000, 1000, 1) == 0.75 * (2 * 2 * 1000 + 4 * 1000)
    assert step_traffic(fsdp, 1000, 10, 3) == 0.75 * (3 * 2 * 2 * 1000 + 4 * 10)
    assert step_traffic(TrainingSetup("ddp", 2, 100), 1000, 1000, 3) == 0.5 * 2 * 4 * 1000
    assert step_traffic(TrainingSetup("single", 1, 100), 1000, 1000, 3) == 0


def test_bytes_on_disk():
    assert saved_bytes(1000, None, "bfloat16", 5) == (2000, 4 * 2000)
    assert saved_bytes(1000, 10, "float32", 3) == (4000 + 40, 2 * 40)
    assert states_bytes(1000, keep=2) == 3 * 12 * 1000
    assert num_flops(100, 100, 10) == 6 * 100 * 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_dimensions_of_models_of_conf_have_the_published_number_of_parameters(name):
    billions = {"Llama-3.1-8B": 8.03, "Mistral-7B-v0.1": 7.24, "gemma-2b": 2.506, "Qwen2.5-14B": 14.77}
    shape = ModelShape.of(PUBLISHED[name])
    if name == "google/gemma-2-2b":
        assert shape is None
    else:
        assert shape.num_parameters / 1e9 == pytest.approx(billions[name.partition("/")[2]], rel=0.001)
