"""A tuned model as an ordinary Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import torch

from sftmix.models.quiet import quiet_transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(causal_lm: Any, tokenizer: Any, folder: Path, dtype: str, end_token_id: int) -> None:
    """Write weights (safetensors, in the given dtype), config, tokenizer and chat template.

    The model in memory keeps its own precision. Generation stops at the end tokens it knew and at `end_token_id`, the
    one it was tuned to end with.
    """
    converted: dict[tuple[int, torch.Size], torch.Tensor] = {}  # tied weights stay one tensor, and are written once
    weights = {}
    for name, tensor in causal_lm.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in converted:
            kind = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
            converted[place] = tensor.detach().to("cpu", kind)
        weights[name] = converted[place]
    generation = causal_lm.generation_config
    generation.eos_token_id = _end_tokens(generation.eos_token_id, end_token_id)
    if any(getattr(generation, flag) not in (None, 1.0) for flag in ("temperature", "top_p")):
        generation.do_sample = True  # flags of sampling without it are refused on saving
    generation.pad_token_id = tokenizer.pad_token_id
    with quiet_transformers():
        causal_lm.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = dtype  # transformers writes the precision of the model in memory, not that of the weights
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _end_tokens(known: int | list[int] | None, eos: int) -> int | list[int]:
    """The end tokens that generation stops at."""
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    if eos not in ends:
        ends.append(eos)
    return ends[0] if len(ends) == 1 else ends
