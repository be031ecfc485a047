"""The program's step on fake CUDA devices: no mixed devices, no wait for the device, and memory as it should be."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sftmix.estimate.memory import GIB, TrainingSetup, scoring_bytes
from sftmix.estimate.shape import ModelShape
from simulated_gpu.guard import build_guard
from simulated_gpu.shapes import SHAPES

STEP = Path(__file__).with_name("step.py")
SINGLE = [
    {},
    {"layout": "padded"},
    {"layout": "grouped", "num_micro_batches": 2},
    {"attention": "torch_varlen"},
    {"attention": "eager", "layout": "padded"},
    {"mu": None, "checkpointing": True},
    {"bfloat16": False},
    {"loss": {"form": "reweight", "token_weight": "dft"}},
    {"loss": {"form": "labels", "token_weight": "eaft", "label_smoothing": 0.1}},
    {"mu": None, "loss": {"dro_temperature": 1.0}, "num_micro_batches": 2},
    {"lora": True},
    *([{"lora": True, "quantized": True}] if find_spec("bitsandbytes") else []),
]
FSDP = [
    {},
    {"layout": "padded", "checkpointing": True},
    {"attention": "torch_varlen", "num_micro_batches": 2},
    {"num_micro_batches": 2, "accumulates_whole": False},
    {"mu": None, "lora": True},
    {"num_micro_batches": 2, "loss": {"dro_temperature": 1.0, "form": "labels", "token_weight": "eaft"}},
]
DDP = [{}, {"attention": "torch_varlen", "num_micro_batches": 2, "checkpointing": True}, {"lora": True}]
FAULTS = {  # what the error says, in all versions of torch
    "item": "aten._local_scalar_dense.default",
    "cpu_tensor": "cpu",
    "buffer": "cpu",
}


@pytest.fixture(scope="module")
def simulate(tmp_path_factory):
    """Run cases in a process of their own, since torch cannot lose its fake devices again."""
    try:
        guard = build_guard(tmp_path_factory.mktemp("guard"))
    except RuntimeError as error:
        pytest.skip(f"{error}: the device guard of fake CUDA devices cannot be compiled")

    def run(cases, **common):
        command = [sys.executable, str(STEP), str(guard), *(json.dumps({**common, **case}) for case in cases)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_step_of_one_gpu_mixes_no_devices_and_does_not_wait_for_the_device(simulate):
    faults = [{"fault": fault} for fault in FAULTS]
    *results, item, cpu_tensor, buffer = simulate(SINGLE + faults)
    for result in results:
        assert "error" not in result, result
        trained = result["parameters"] if not result["case"]["lora"] else 32768
        assert result["state_bytes"] >= 12 * trained  # weights and two moments, in float32
    for result, says in zip((item, cpu_tensor, buffer), FAULTS.values(), strict=True):
        assert says in result["error"]


def test_a_step_of_eight_gpus_does_not_either_and_the_state_is_shared(simulate):
    """Blocks as those of Llama-3.1-8B too. Weights, gradients and two moments in float32 take 16 bytes a parameter."""
    sizes = [{"num_layers": layers, "mu": mu} for layers in (2, 6) for mu in (0.2, None)]
    llama = {"model": "llama8b", "tokens": 490, "length": 245, "scores": False}
    scored = {
        "model": "llama8b",
        "num_layers": 2,
        "attention": "torch_varlen",
        "tokens": 8192,
        "length": 512,
        "steps": 0,
    }
    cases = [*FSDP, *({**llama, **size} for size in sizes), scored, *({"strategy": "ddp"} | case for case in DDP)]
    results = simulate([{"strategy": "fsdp"} | case for case in cases], world_size=8)
    for result in results:
        assert "error" not in result, result
    whole, by_micro_batch = results[2], results[3]
    assert by_micro_batch["peak_gib"] < whole["peak_gib"], "gradients are sharded after each micro-batch"
    of_ddp, scoring = results[-len(DDP) :], results[-len(DDP) - 1]
    assert of_ddp[0]["state_bytes"] >= 16 * of_ddp[0]["parameters"], "the buckets of the gradients stay"
    shape = ModelShape.of({**SHAPES["llama8b"], "num_hidden_layers": 2})
    planned = scoring_bytes(shape, TrainingSetup("fsdp", 8, 8192))
    assert scoring["scoring_gib"] * GIB == pytest.approx(max(planned.values()), rel=0.01)
    of_llama = results[len(FSDP) : len(FSDP) + len(sizes)]
    for result in of_llama:
        assert result["state_bytes"] == pytest.approx(12 * result["parameters"] / 8, rel=0.01)
        step = 16 * result["parameters"] / 8
        assert result["peaks"]["optimizer"] * GIB == pytest.approx(step, rel=0.01)
        gathered = 2 * 4 * shape.embedding_parameters  # the largest weight; waiting for a fake collective copies it
        assert result["peaks"]["export"] * GIB == pytest.approx(step + gathered, rel=0.01)
    for sftmix, ntp in zip(of_llama[::2], of_llama[1::2], strict=True):
        assert sftmix["peak_gib"] == pytest.approx(ntp["peak_gib"], rel=0.01)
