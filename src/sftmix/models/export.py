"""A tuned model as an ordinary Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import torch

from sftmix.models.loading import load_causal_lm
from sftmix.models.lora import check_logits, merge, probe_logits
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


def export_merged(causal_lm: Any, adapter: Path, tokenizer: Any, folder: Path, dtype: str, end_token_id: int) -> None:
    """Write a base with an adapter merged into it as `export` does, and see that the folder gives its logits.

    Merging is done in the base's own precision, float32: it gives the logits of base and adapter apart up to the order
    of summation. The folder, read again, gives those of the merged weights rounded to the given dtype.

    Args:
        causal_lm: the base, without adapters; it is used up.
        adapter: a PEFT folder.
        tokenizer: with its chat template.
        folder: where to write.
        dtype: of what is written.
        end_token_id: the token that a response ends with.

    Raises:
        RuntimeError: logits differ.
    """
    merged = merge(causal_lm, adapter)
    export(merged, tokenizer, folder, dtype, end_token_id)
    with torch.no_grad():
        for tensor in merged.state_dict().values():
            tensor.copy_(tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor)
    expected = probe_logits(merged)
    del causal_lm, merged  # one model in memory at a time
    check_logits(probe_logits(load_causal_lm(str(folder), None)), expected, f"{folder}: read again")


def _end_tokens(known: int | list[int] | None, eos: int) -> int | list[int]:
    """The end tokens that generation stops at."""
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    if eos not in ends:
        ends.append(eos)
    return ends[0] if len(ends) == 1 else ends
