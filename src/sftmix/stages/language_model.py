"""A model as the trainer's settings want it: its layout, its attention, its blocks compiled or not."""

from importlib.util import find_spec
from typing import Any

from sftmix.config import Trainer
from sftmix.errors import InputError
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import hold_frozen_in_bfloat16
from sftmix.stages.device import Device


def prepare_language_model(causal_lm: Any, trainer: Trainer, device: Device) -> tuple[SFTMixLM, str]:
    """A model taken apart and set up, and the layout of its sequences.

    Where nobody chose a layout, a family whose packed sequences see each other is grouped. Flash attention computes in
    half precision on a GPU alone, so its packing is checked with the attention that the model came with.

    Raises:
        InputError: the family cannot do what the settings say.
    """
    lm, layout = SFTMixLM(causal_lm), device.layout
    if trainer.attention in ("sdpa", "eager"):
        lm.use_attention(trainer.attention)
    if layout == "packed":
        try:
            lm.check_packing()
        except InputError:
            if trainer.layout == "packed":
                raise
            layout = "grouped"
    found = device.can_flash and find_spec("flash_attn") is not None and causal_lm._supports_flash_attn
    if trainer.attention == "flash_attention_2" or (trainer.attention == "auto" and found):
        lm.use_attention("flash_attention_2")
    if device.precision == "bf16-mixed":
        hold_frozen_in_bfloat16(causal_lm)
    if trainer.compile:
        lm.compile_blocks()
    return lm, layout
