"""Set up a language model: layout, attention, compiled blocks, devices."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from sftmix.config.schema import Trainer
from sftmix.distributed.process_group import broadcast_object
from sftmix.distributed.sharding import replicate, shard
from sftmix.errors import InputError
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import exact_in_bfloat16, hold_in_bfloat16
from sftmix.models.probes import check_packing
from sftmix.stages.context import RankContext


def prepare_language_model(load: Callable[[bool], Any], trainer: Trainer, rank: RankContext) -> tuple[SFTMixLM, str]:
    """Load a model and set it up. Return it with the layout of its sequences.

    With trainer.layout=auto, a model whose packed sequences attend to each other is not packed: its layout is grouped,
    or padded under FSDP. Flash attention needs half precision on a GPU, so packing is checked before it is switched on.
    Only the first rank has weights until `place` distributes them.

    Args:
        load: Returns the causal language model, with its weights if its argument is true.
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


def place(lm: SFTMixLM, rank: RankContext) -> None:
    """Put a model, or its shard of this rank, on the device of this process."""
    if rank.device.strategy == "fsdp":
        shard(lm, rank.torch_device, bfloat16=rank.device.precision == "bf16-mixed")
    elif rank.device.strategy == "ddp":
        replicate(lm, rank.torch_device)
    else:
        lm.to(rank.torch_device)
