"""A small module, its data, and runs of a plain Trainer with both, for tests of training."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

import builders
from builders import odd_llama, random_examples
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.ranks import SINGLE, Ranks
from sftmix.distributed.sharding import replicate, whole
from sftmix.distributed.stopping import StopRequest
from sftmix.distributed.strategy import trainer_arguments
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import Base, add_lora
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.fit import FitSettings
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings, SchedulerSettings
from sftmix.training.states import TrainingStates

PAD = 0
EPOCHS, STEPS_PER_EPOCH = 3, 3
TOTAL = EPOCHS * STEPS_PER_EPOCH
FIELDS = {"data": {"sha256": "a"}, "recipe": {"lr": 0.1, "betas": [0.9, 0.999]}}
LR, SCHEDULE = 1e-2, SchedulerSettings(warmup_ratio=0.2)


def small_module(
    ranks: Ranks = SINGLE,
    *,
    strategy: str = "single",
    lora: bool = False,
    quantized: bool = False,
    dropout: float = 0.1,
    **settings: Any,
) -> SFTMixModule:
    """Return the module of a tied Llama of two layers, in evaluation mode as Hugging Face loads models."""
    causal_lm: Any = odd_llama(weights=ranks.is_first, dropout=dropout).eval()
    if quantized:
        from sftmix.models.quantization import quantize

        quantize(causal_lm)
    if lora:
        base = Base("base", None)
        causal_lm = add_lora(causal_lm, r=4, alpha=8, dropout=dropout, target_modules="all-linear", seed=0, base=base)
    lm = SFTMixLM(causal_lm)
    if strategy == "ddp":
        replicate(lm, torch.device("cpu"))
    return SFTMixModule(
        lm,
        **{
            "loss": LossSettings(mu=0.2),
            "optimizer": OptimizerSettings(lr=LR, max_grad_norm=0.5),
            "scheduler": SCHEDULE,
            "seed": 3,
            **settings,
        },
    )


def small_data(*, paired: bool = True, num_workers: int = 0) -> SFTDataModule:
    """Return data of three steps an epoch, the last one short, and seven held-out examples."""
    subsets: list[bool | None] | None = [i % 2 == 0 for i in range(22)] if paired else None
    sampler = StepSampler(22, subsets, SamplerSettings(global_batch_size=8, alpha=0.5, seed=3))
    batches = BatchSettings("padded", 60, PAD)
    train, val = (EncodedExamples.of(random_examples(count, seed=seed)) for count, seed in ((22, 1), (7, 2)))
    return SFTDataModule(sampler, train, val, batches, num_workers=num_workers)


def fit(module: SFTMixModule, data: SFTDataModule, folder: Path, *callbacks: Any, **arguments: Any) -> L.Trainer:
    """Train in a plain Trainer."""
    arguments = {"max_epochs": EPOCHS, "log_every_n_steps": 1, **arguments}
    return builders.fit(module, data, *callbacks, default_root_dir=folder, **arguments)


def fit_ranks(
    strategy: str, ranks: Ranks, folder: Path, *callbacks: Any, lora: bool = False, **arguments: Any
) -> dict[str, torch.Tensor]:
    """Train under a strategy. Return weights and moments of the optimizer, whole."""
    module = small_module(ranks, strategy=strategy, lora=lora, dropout=0.0)
    arguments = {**trainer_arguments(strategy, "cpu", "32-true", ranks), **arguments}
    trainer = fit(module, small_data(), folder, *callbacks, **arguments)
    return weights_and_moments(module, trainer.optimizers[0])


def weights_and_moments(module: SFTMixModule, optimizer: Any) -> dict[str, torch.Tensor]:
    """Return weights and moments of the optimizer, whole."""
    found = {name: whole(p.detach()).clone() for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        for key, value in optimizer.state[p].items():
            found[f"{key} of {name}"] = whole(value).clone()
    return found


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Return whether all tensors are equal bit for bit."""
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


def close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Return whether all tensors are equal up to the order of sums in single precision."""
    return got.keys() == expected.keys() and all(
        torch.allclose(got[name], expected[name], rtol=1e-4, atol=1e-6) for name in expected
    )


def states_in(folder, ranks=SINGLE, said=None, every=1, keep=2, fields=FIELDS, stop=None, minutes=None):
    """Return the callback that saves training states, after every step unless told otherwise."""
    return TrainingStates(
        folder,
        ranks,
        every_minutes=minutes,
        every_n_steps=every,
        keep=keep,
        fields=fields,
        stop=stop or StopRequest(),
        say=(lambda _: None) if said is None else said.append,
    )


def small_settings(folder: Path, *, every: int, keep: int, log_every: int, **more: Any) -> FitSettings:
    """Settings of a whole run on the CPU that saves its state every few steps."""
    single = trainer_arguments("single", "cpu", "32-true", SINGLE)
    return FitSettings(
        title="target",
        folder=folder,
        states=folder / "states",
        fields={},
        checkpoints=folder / "checkpoints",
        checkpoint_steps=[],
        save_every_minutes=None,
        save_every_n_steps=every,
        keep=keep,
        progress_bar=False,
        trainer={**single, "max_epochs": EPOCHS, "log_every_n_steps": log_every},
        **more,
    )
