"""A model as the trainer's settings want it: its layout, its attention, its blocks compiled or not, on its devices."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from sftmix.config.schema import Mixup, Trainer
from sftmix.distributed.process_group import broadcast_object
from sftmix.distributed.sharding import replicate, shard_over_all
from sftmix.errors import InputError
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import exact_in_bfloat16, hold_in_bfloat16
from sftmix.models.probes import check_packing
from sftmix.stages.context import RankContext


def prepare_language_model(load: Callable[[bool], Any], trainer: Trainer, rank: RankContext) -> tuple[SFTMixLM, str]:
    """A model taken apart and set up, and the layout of its sequences.

    Where nobody chose a layout, a family whose packed sequences see each other is grouped, or padded where ranks share
    it. Flash attention computes in half precision on a GPU alone, so its packing is checked with the attention that the
    model came with. The first rank alone has weights, until `place` gives them to the others.

    Args:
        load: gives the causal language model, with its weights or without.
        trainer: settings.
        rank: this process.

    Raises:
        InputError: the family cannot do what the settings say.
    """
    device, is_first = rank.device, rank.ranks.is_first
    causal_lm = load(is_first)
    lm, layout = SFTMixLM(causal_lm), device.layout
    if trainer.attention in ("sdpa", "eager"):
        lm.use_attention(trainer.attention)
    if layout == "packed" and is_first:
        try:
            check_packing(lm)
        except InputError:
            if trainer.layout == "packed":
                raise
            layout = "padded" if device.strategy == "fsdp" else "grouped"
    found = device.can_flash and find_spec("flash_attn") is not None and causal_lm._supports_flash_attn
    if trainer.attention == "flash_attention_2" or (trainer.attention == "auto" and found):
        lm.use_attention("flash_attention_2")
    if device.precision == "bf16-mixed":
        hold_in_bfloat16(causal_lm, broadcast_object(exact_in_bfloat16(causal_lm) if is_first else []))
    if trainer.compile:
        lm.compile_blocks()
    return lm, broadcast_object(layout)


def loss_settings(mixup: Mixup | None, trainer: Trainer) -> LossSettings:
    """Return how the loss of a run is computed. `mixup=None` is next-token prediction."""
    if mixup is None:
        return LossSettings(mu=None, implementation=trainer.loss)
    return LossSettings(mu=mixup.mu, normalize_by=mixup.normalize_by, implementation=trainer.loss)


def place(lm: SFTMixLM, rank: RankContext) -> None:
    """Put a model that only computes on this process's device: whole, or its shard of it."""
    if rank.device.strategy == "fsdp":
        shard_over_all(lm, rank.torch_device, bfloat16=rank.device.precision == "bf16-mixed")
    elif rank.device.strategy == "ddp":
        replicate(lm, rank.torch_device)
    else:
        lm.to(rank.torch_device)
