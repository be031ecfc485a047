"""The gradient of one optimizer step as a run takes it, written instead of used: to compare ways of taking it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sftmix.distributed.process_group import all_reduce_sum
from sftmix.distributed.ranks import Ranks
from sftmix.distributed.sharding import whole
from sftmix.distributed.strategy import trainer_arguments
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.fit import quiet_lightning
from sftmix.training.module import SFTMixModule

SMALL = 1e-3  # of the largest gradient: what is below it is measured by it


def step_gradient(
    lm: SFTMixLM,
    data: SFTDataModule,
    file: Path,
    *,
    loss: LossSettings,
    ranks: Ranks,
    strategy: str,
    accelerator: str,
    precision: str,
    neftune_alpha: float | None = None,
) -> float:
    """Take the first step of a run up to its gradient, without dropout, and write that as safetensors.

    Args:
        lm: the model.
        data: its first step is taken.
        file: where the first rank writes the gradient of each trained parameter, whole, in float32.
        loss: How the loss is computed.
        ranks: this process.
        strategy: single, ddp or fsdp.
        accelerator: cpu or gpu.
        precision: Lightning's name of it.
        neftune_alpha: size of the noise on the embeddings, or None where there is none.

    Returns:
        The loss of the step, nats.
    """
    without_dropout(lm)
    module = _OneStep(
        lm,
        file,
        loss=loss,
        lr=1.0,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        warmup_ratio=0.0,
        max_grad_norm=1.0,
        total_steps=1,
        steps_per_epoch=1,
        seed=0,
        log_every_n_steps=1,
        neftune_alpha=neftune_alpha,
        sharded=strategy == "fsdp",
        shards_in_bfloat16=precision == "bf16-mixed",
    )
    with quiet_lightning():
        trainer = Trainer(
            **trainer_arguments(strategy, accelerator, precision, ranks),
            max_epochs=1,
            limit_train_batches=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        module.train()
        trainer.fit(module, datamodule=data)
    return module.step_loss


class _OneStep(SFTMixModule):
    """Writes the gradient of a step and leaves the weights as they are."""

    step_loss: float

    def __init__(self, lm: SFTMixLM, file: Path, **arguments: Any) -> None:
        super().__init__(lm, **arguments)
        self.file = file
        self.step_loss = float("nan")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss, _, _ = self.backward_of_step(batch)
        self.step_loss = all_reduce_sum([loss.item()])[0]
        gradients = {}
        for name, parameter in self.lm.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                gradient = whole(parameter.grad).float().cpu()
                if self.trainer.is_global_zero:
                    gradients[name] = gradient.contiguous()
        if self.trainer.is_global_zero:
            save_file(gradients, self.file)


def without_dropout(module: nn.Module | LightningModule) -> None:
    """Switch dropout off, of layers and of attention, and leave all else as in training."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            setattr(part, "attention_dropout", 0.0)  # noqa: B010 - no module declares it


def gradient_difference(file: Path, expected: Path) -> float:
    """How far two gradients are apart: of the worst tensor, its largest difference over its largest value.

    A tensor whose values are below a thousandth of the largest of all is measured by that. Infinite where names differ.
    """
    with safe_open(file, "pt") as mine, safe_open(expected, "pt") as theirs:
        if set(mine.keys()) != set(theirs.keys()):
            return float("inf")
        differences, largest = zip(*_extremes(mine, theirs), strict=True)
        floor = SMALL * max(largest)
        return max(d / max(own, floor) for d, own in zip(differences, largest, strict=True))


def _extremes(mine: Any, theirs: Any) -> Iterator[tuple[float, float]]:
    for name in theirs.keys():  # noqa: SIM118 - no mapping
        got, expected = mine.get_tensor(name), theirs.get_tensor(name)
        difference = (got - expected).abs().max().item() if torch.isfinite(got).all() else float("inf")
        yield difference, expected.abs().max().item()
