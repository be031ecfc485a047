"""One rank of the invariance check: the gradient of one step of NTP and of SFTMix, computed in one variant."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sftmix.artifacts.files import write_json
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.distributed.process_group import all_reduce_sum
from sftmix.distributed.sharding import whole
from sftmix.distributed.strategy import trainer_arguments
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.invariance.check import StepVariant
from sftmix.stages.language_model import place, prepare_language_model
from sftmix.stages.models import load_trainable_model
from sftmix.stages.split import partner_order, split_examples
from sftmix.stages.train import loss_settings
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.fit import quiet_trainer
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings

SMALL = 1e-3  # A tensor whose gradient is below this share of the largest gradient is compared with that share of it.


def write_gradients(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Write `ntp.safetensors`, `sftmix.safetensors` and `losses.json` into the folder of the spec."""
    config, variant = context.config, StepVariant(**spec.fields)
    train, mixup = context.encoded(config.model).train, config.recipe.mixup
    if config.needs_split and not config.needs_confidence:
        subsets = split_examples(context, None).train
    else:
        subsets = (np.random.default_rng(config.seed).permutation(len(train)) % 2 == 0).tolist()
    losses: dict[str, float] = {}
    for name in ("ntp", "sftmix"):
        is_mixed = name == "sftmix"
        sampler = StepSampler(
            len(train),
            subsets if is_mixed else None,
            SamplerSettings(
                global_batch_size=config.recipe.global_batch_size,
                seed=config.seed,
                alpha=mixup.alpha if mixup else 0.5,
                pairing=mixup.pairing if mixup else "across",
            ),
            pair_order=partner_order(config, train, {}) if is_mixed else None,
        )
        lm, device = prepare_language_model(
            lambda weights: load_trainable_model(config.model, config.root, config.seed, weights=weights),
            config.trainer,
            rank,
        )
        if variant.checkpointing or config.trainer.activation_checkpointing == "full":
            lm.checkpoint_activations()
        if rank.device.strategy == "ddp":
            place(lm, rank)
        mu = (mixup.mu if mixup else 0.2) if is_mixed else None
        losses[name] = step_gradient(
            lm,
            _data_module(context, rank, variant, sampler, device.layout),
            spec.folder / f"{name}.safetensors",
            replace(loss_settings(config.recipe, config.trainer), mu=mu, chunk_bytes=variant.chunk_bytes),
            rank,
            neftune_alpha=config.recipe.neftune_alpha,
        )
        del lm
        rank.device.release()
    if rank.ranks.is_first:
        write_json(spec.folder / "losses.json", {**losses, "layout": device.layout})


def _data_module(
    context: RunContext, rank: RankContext, variant: StepVariant, sampler: StepSampler, layout: str
) -> SFTDataModule:
    config, encoded = context.config, context.encoded(context.config.model)
    micro_batch_tokens = config.trainer.micro_batch_tokens
    if variant.num_micro_batches > 1:
        num_tokens = sum(int(encoded.train.lengths[i]) for i in sampler.epoch(0)[0].examples)
        share = num_tokens // rank.device.num_local
        micro_batch_tokens = min(micro_batch_tokens, max(1, share // variant.num_micro_batches))
    pad_token_id, prompt_weight = encoded.tokenizer.pad_token_id, config.recipe.ntp.prompt_weight
    batches = BatchSettings(layout, micro_batch_tokens, pad_token_id, prompt_weight)
    return SFTDataModule(sampler, encoded.train, encoded.val, batches)


def step_gradient(
    lm: SFTMixLM, data: SFTDataModule, file: Path, loss: LossSettings, rank: RankContext, *, neftune_alpha: float | None
) -> float:
    """Compute the gradient of the first step of a run as training computes it, but without dropout.

    Args:
        file: File into which the first rank writes the gradient of each trained parameter, whole, in float32.

    Returns:
        The loss of the step in nats per response token.
    """
    device = rank.device
    without_dropout(lm)
    module = _OneStep(
        lm,
        file,
        loss=loss,
        optimizer=OptimizerSettings(lr=1.0),
        neftune_alpha=neftune_alpha,
        shards_in_bfloat16=device.precision == "bf16-mixed",
    )
    with quiet_trainer(
        **trainer_arguments(device.strategy, device.accelerator, device.precision, rank.ranks),
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
    ) as trainer:
        trainer.fit(module, datamodule=data)
    return module.step_loss


class _OneStep(SFTMixModule):
    """Writes the gradient of a step and does not change the weights."""

    def __init__(self, lm: SFTMixLM, file: Path, **arguments: Any) -> None:
        super().__init__(lm, **arguments)
        self.file = file
        self.step_loss = float("nan")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.backward_of_step(batch).loss
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


def without_dropout(module: nn.Module) -> None:
    """Switch off the dropout of layers and of attention. Everything else stays in training mode."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            setattr(part, "attention_dropout", 0.0)  # noqa: B010 - no module declares the attribute


def gradient_difference(file: Path, expected: Path) -> float:
    """Return the largest relative difference of two gradients over all tensors, or infinity if the names differ.

    The difference of a tensor is its largest absolute difference over its largest expected value. If the latter is
    smaller than `SMALL` times the largest value of all tensors, it is replaced by that.
    """
    with safe_open(file, "pt") as ours, safe_open(expected, "pt") as theirs:
        if set(ours.keys()) != set(theirs.keys()):
            return float("inf")
        differences, largest = list[float](), list[float]()
        for name in theirs.keys():  # noqa: SIM118 - not a mapping
            got, values = ours.get_tensor(name), theirs.get_tensor(name)
            is_finite = bool(torch.isfinite(got).all())
            differences.append((got - values).abs().max().item() if is_finite else float("inf"))
            largest.append(values.abs().max().item())
        floor = SMALL * max(largest)
        return max(d / max(own, floor) for d, own in zip(differences, largest, strict=True))
