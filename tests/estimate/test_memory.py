"""Peak memory by arithmetic, against steps of the program on simulated GPUs (tests/simulated_gpu/step.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftmix.estimate.memory import GIB, TrainingSetup, peak_bytes, scoring_bytes, state_bytes
from sftmix.estimate.shape import ModelShape
from simulated_gpu.guard import build_guard
from simulated_gpu.shapes import SHAPES

STEP = Path(__file__).parents[1] / "simulated_gpu/step.py"
FSDP, DDP = {"strategy": "fsdp", "world_size": 8}, {"strategy": "ddp", "world_size": 8}
MICRO, LORA, AGAIN = {"num_micro_batches": 2}, {"lora": True}, {"checkpointing": True}
QLORA = LORA | {"quantized": True}
FOUR, PADDED = {"world_size": 4}, {"layout": "padded"}
FLASH, SHARDED = {"attention": "torch_varlen"}, {"accumulates_whole": False}
# (model, tokens, length, other fields of a case, peak in GiB that `step.py` printed under torch 2.13)
SIMULATED = [
    ("llama8b", 490, 245, FSDP, 20.3395),
    ("llama8b", 8192, 512, FSDP | FLASH, 65.8708),
    ("llama8b", 8192, 512, FSDP | AGAIN, 21.9874),
    ("llama8b", 3904, 488, {}, 137.3240),
    ("llama8b", 3904, 488, LORA, 47.1314),
    ("llama1b", 8192, 512, FSDP, 20.4688),
    ("llama1b", 8192, 512, FSDP | FLASH, 17.7188),
    ("llama1b", 8192, 512, FSDP | PADDED, 17.7169),
    ("llama1b", 8192, 512, FSDP | AGAIN, 5.3460),
    ("llama1b", 8192, 512, FSDP | LORA, 17.0634),
    ("llama1b", 8192, 512, FSDP | MICRO, 25.0728),
    ("llama1b", 8192, 512, FSDP | MICRO | SHARDED, 21.0445),
    ("llama1b", 8192, 512, FSDP | MICRO | AGAIN, 9.7264),
    ("llama1b", 8192, 512, {}, 36.8017),
    ("llama1b", 4096, 512, {}, 26.9476),
    ("llama1b", 2048, 512, {}, 22.1847),
    ("llama1b", 8192, 512, FLASH, 34.0517),
    ("llama1b", 8192, 512, PADDED, 34.0480),
    ("llama1b", 8192, 512, AGAIN, 20.3724),
    ("llama1b", 8192, 512, LORA, 21.5400),
    ("llama1b", 8192, 512, LORA | AGAIN, 5.6211),
    ("llama8b", 3904, 488, QLORA, 37.4849),
    ("llama8b", 2048, 512, QLORA | AGAIN, 10.6199),
    ("llama8b", 8192, 512, QLORA | AGAIN, 14.7327),
    ("llama1b", 8192, 512, QLORA, 20.1952),
    ("llama1b", 8192, 512, QLORA | AGAIN, 4.2762),
    ("llama1b", 8192, 512, DDP, 41.4055),
    ("llama1b", 2048, 512, DDP, 26.7431),
    ("llama1b", 8192, 512, DDP | FLASH, 38.6555),
    ("llama1b", 8192, 512, DDP | MICRO, 46.0095),
    ("llama1b", 8192, 512, DDP | AGAIN, 23.9514),
    ("llama1b", 8192, 512, DDP | LORA, 21.5820),
    ("llama1b", 8192, 512, DDP | QLORA | AGAIN, 4.3182),
    ("gemma2b", 8192, 512, FSDP, 34.9582),
    ("mistral7b", 2048, 512, FSDP, 25.8896),
    ("qwen14b", 490, 245, FSDP, 35.4877),
    ("qwen14b", 8192, 512, FSDP | FLASH, 108.2367),
    ("qwen14b", 8192, 512, FSDP | AGAIN, 36.3258),
    ("llama8b", 8192, 512, FSDP | PADDED, 65.8671),
    ("llama8b", 7350, 245, FSDP | FOUR | MICRO, 107.8009),
    ("llama8b", 7350, 245, FSDP | FOUR | MICRO | AGAIN | SHARDED, 38.9441),
]
# The same for batches that are scored.
SCORED = [
    ("llama8b", 8192, FLASH, 31.4612),
    ("llama8b", 8192, FLASH | LORA, 18.6175),
    ("llama8b", 8192, FLASH | QLORA, 8.9709),
    ("llama8b", 8192, FSDP | FLASH, 8.5326),
    ("llama8b", 8192, FSDP, 8.5951),
    ("mistral7b", 8192, FSDP | FLASH, 5.5834),
    ("gemma2b", 8192, FSDP | PADDED, 3.5623),
    ("qwen14b", 8192, FSDP | FLASH, 13.7864),
    ("llama1b", 8192, FLASH, 5.6216),
    ("llama1b", 65536, FLASH, 9.6370),
    ("llama1b", 32768, PADDED, 7.1047),
    ("llama1b", 16384, {}, 6.4714),
    ("llama1b", 32768, FLASH | LORA, 5.9761),
    ("llama1b", 32768, FLASH | QLORA, 4.6313),
    ("llama1b", 65536, FSDP | FLASH, 5.3089),
    ("llama1b", 8192, FSDP | FLASH | LORA, 1.6998),
]


def shape_of(model):
    return ModelShape.of({"tie_word_embeddings": False, **SHAPES[model]})


def setup_of(tokens, case):
    return TrainingSetup(
        strategy=case.get("strategy", "single"),
        num_ranks=case.get("world_size", 1),
        tokens=tokens,
        has_mask=case.get("layout", "packed") == "packed" and case.get("attention", "sdpa") == "sdpa",
        checkpoints_activations=case.get("checkpointing", False),
        has_micro_batches=case.get("num_micro_batches", 1) > 1,
        accumulates_whole=case.get("accumulates_whole", True),
        lora_rank=16 if case.get("lora") else None,
        is_quantized=case.get("quantized", False),
    )


@pytest.mark.parametrize(("model", "tokens", "length", "case", "simulated"), SIMULATED)
def test_the_peak_is_that_of_the_simulated_step(model, tokens, length, case, simulated):
    peak = max(peak_bytes(shape_of(model), setup_of(tokens, case)).values()) / GIB
    assert peak == pytest.approx(simulated, rel=0.02)


@pytest.mark.parametrize(("model", "tokens", "case", "simulated"), SCORED)
def test_the_peak_of_scoring_is_that_of_the_simulated_batch(model, tokens, case, simulated):
    peak = max(scoring_bytes(shape_of(model), setup_of(tokens, case)).values()) / GIB
    assert peak == pytest.approx(simulated, rel=0.01)


@pytest.mark.parametrize("model", SHAPES)
def test_the_state_is_twelve_bytes_a_parameter_shared_by_the_ranks(model):
    shape = shape_of(model)
    assert state_bytes(shape, setup_of(512, {})) == 12 * shape.num_parameters
    assert state_bytes(shape, setup_of(512, FSDP)) == 12 * shape.num_parameters / 8


@pytest.mark.slow
@pytest.mark.parametrize(("model", "tokens", "length", "case", "simulated"), SIMULATED)
def test_the_simulated_step_has_this_peak(tmp_path_factory, model, tokens, length, case, simulated):
    """Up to a minute each."""
    guard = build_guard(tmp_path_factory.mktemp("guard"))
    content = {"model": model, "tokens": tokens, "length": length, "scores": False, **case}
    done = subprocess.run(
        [sys.executable, str(STEP), str(guard), json.dumps(content)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["peak_gib"] == pytest.approx(simulated, rel=0.01)


ON_CPU = """
import resource, sys
from builders import fit, new_tiny_tokenizer, random_examples
import torch
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.models.language_model import SFTMixLM
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.module import SFTMixModule
from sftmix.functional.equations import LossSettings
from sftmix.training.optim import OptimizerSettings
from transformers import LlamaConfig, LlamaForCausalLM

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def step(hidden, layers):
    config = LlamaConfig(vocab_size=64, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
                         num_attention_heads=4, tie_word_embeddings=True)
    examples = EncodedExamples.of(random_examples(4))
    sampler = StepSampler(4, None, SamplerSettings(4, seed=0))
    data = SFTDataModule(sampler, examples, examples, BatchSettings("padded", 512, 0))
    lm, optimizer = SFTMixLM(LlamaForCausalLM(config)), OptimizerSettings(1e-3)
    module = SFTMixModule(lm, loss=LossSettings(mu=None), optimizer=optimizer)
    fit(module, data, max_epochs=2, limit_val_batches=0)
    return config.to_dict()

step(16, 1)
before = peak()
import json
print(json.dumps([step(int(sys.argv[1]), int(sys.argv[2])), peak() - before]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "layers"), [(512, 8), (768, 8), (1024, 8)])
def test_a_real_step_on_a_cpu_takes_the_state_and_the_gradients(hidden, layers):
    """Weights, gradients and moments of float32. Activations are few; a CPU holds others than a GPU in bfloat16."""
    command = [sys.executable, "-c", ON_CPU, str(hidden), str(layers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    config, measured = json.loads(done.stdout.splitlines()[-1])
    shape = ModelShape.of(config)
    planned = state_bytes(shape, setup_of(64, {})) + 4 * shape.num_parameters
    assert measured == pytest.approx(planned, rel=0.1)
