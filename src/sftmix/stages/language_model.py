"""Set up a language model: layout, attention, compiled blocks, devices."""

from collections.abc import Callable
from typing import Any

import torch

from sftmix.config.schema import Trainer
from sftmix.distributed.device import Device
from sftmix.distributed.process_group import broadcast_object
from sftmix.distributed.sharding import replicate, shard
from sftmix.errors import InputError
from sftmix.models.attention import FLASH, VARLEN, flash_candidates, why_unusable
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import exact_in_bfloat16, hold_in_bfloat16
from sftmix.models.probes import check_packing
from sftmix.stages.context import RankContext


def prepare_language_model(load: Callable[[bool], Any], trainer: Trainer, rank: RankContext) -> tuple[SFTMixLM, Device]:
    """Load a model and set it up. Return it with the device, which names its layout and its attention.

    With trainer.layout=auto, a model whose packed sequences attend to each other is not packed: its layout is grouped,
    or padded under FSDP. Flash attention needs half precision on a GPU, so packing is checked before it is switched on.
    Only the first rank has weights until `place` distributes them.

    Args:
        load: Returns the causal language model, with its weights if its argument is true.
    """
    device, is_first = rank.device, rank.ranks.is_first
    causal_lm = load(is_first)
    lm, layout = SFTMixLM(causal_lm), device.layout
    if trainer.attention in ("sdpa", "eager", VARLEN):  # these compute on a CPU too
        lm.use_attention(trainer.attention)
    if layout == "packed" and is_first:
        try:
            check_packing(lm)
        except InputError:
            if trainer.layout == "packed":
                raise
            layout = "padded" if device.strategy == "fsdp" else "grouped"
    if trainer.attention in FLASH:
        lm.use_attention(trainer.attention)
    elif trainer.attention == "auto" and device.can_flash:
        if is_first:
            use_fastest_attention(lm, rank.torch_device, is_packed=layout == "packed")
        lm.use_attention(broadcast_object(lm.attention))
    if device.precision == "bf16-mixed":
        hold_in_bfloat16(causal_lm, broadcast_object(exact_in_bfloat16(causal_lm) if is_first else []))
    if trainer.compile:
        lm.compile_blocks()
    return lm, device._replace(layout=broadcast_object(layout), attention=lm.attention)


def use_fastest_attention(lm: SFTMixLM, gpu: torch.device, *, is_packed: bool) -> None:
    """Set the fastest attention that the model and the GPU can use. Print why a faster one cannot be used."""
    own = lm.attention
    for name in flash_candidates() if lm.causal_lm._supports_flash_attn else []:
        try:
            lm.use_attention(name)
            if name == VARLEN and is_packed:
                check_packing(lm)
            why = why_unusable(lm.causal_lm.config.get_text_config(), gpu)
        except InputError as error:
            why = str(error)
        if why is None:
            return
        print(f"attention   {name} is not used: {why}", flush=True)
    lm.use_attention(own)


def place(lm: SFTMixLM, rank: RankContext) -> None:
    """Put a model, or its shard of this rank, on the device of this process."""
    if rank.device.strategy == "fsdp":
        shard(lm, rank.torch_device, bfloat16=rank.device.precision == "bf16-mixed")
    elif rank.device.strategy == "ddp":
        replicate(lm, rank.torch_device)
    else:
        lm.to(rank.torch_device)
