"""A tuned model as an ordinary Hugging Face folder."""

import logging
from pathlib import Path
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(causal_lm: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Write weights (safetensors, in the given dtype), config, tokenizer and chat template.

    The model in memory keeps its own precision.
    """
    target = DTYPES[dtype]
    weights = {
        name: tensor.detach().to("cpu", target) if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in causal_lm.state_dict().items()
    }
    config, generation = causal_lm.config, causal_lm.generation_config
    before = config.dtype
    try:
        config.dtype = target
        generation.eos_token_id = _end_tokens(generation.eos_token_id, tokenizer.eos_token_id)
        generation.pad_token_id = tokenizer.pad_token_id
        with _quiet("transformers"):
            causal_lm.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)
    finally:
        config.dtype = before


def _end_tokens(known: int | list[int] | None, eos: int) -> int | list[int]:
    """The end tokens that generation stops at: those the model had, and the one it was tuned to end with."""
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    if eos not in ends:
        ends.append(eos)
    return ends[0] if len(ends) == 1 else ends


class _quiet:
    """Hold back a library's notes below an error."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)
