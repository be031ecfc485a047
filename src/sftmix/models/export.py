"""A tuned model as an ordinary Hugging Face folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from sftmix.models.loading import load_causal_lm
from sftmix.models.lora import check_logits, merge, probe_logits
from sftmix.models.quiet import quiet_transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def whole_weights(
    causal_lm: Any, dtype: str, whole: Callable[[torch.Tensor], torch.Tensor], *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """The weights of a model on the CPU, in the given dtype; one that stands under two names is one tensor.

    Args:
        causal_lm: the model; it keeps its own precision.
        dtype: of what comes back.
        whole: gives the whole of a tensor of which a rank holds a part; one at a time is whole on the device.
        keep: else nothing comes back: a rank that only helps others to gather.
    """
    converted: dict[tuple[int, torch.Size], torch.Tensor] = {}
    weights = {}
    for name, tensor in causal_lm.state_dict().items():
        place = (local_part(tensor).data_ptr(), tensor.shape)
        if place not in converted:
            kind = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
            gathered = whole(tensor.detach())
            converted[place] = gathered.to("cpu", kind) if keep else gathered.new_empty(0)
            del gathered
        weights[name] = converted[place]
    return weights


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def export(
    causal_lm: Any,
    tokenizer: Any,
    folder: Path,
    dtype: str,
    end_token_id: int,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write weights (safetensors), config, tokenizer and chat template, the whole folder or nothing.

    Generation stops at the end tokens it knew and at `end_token_id`, the one it was tuned to end with.

    Args:
        causal_lm: the model.
        tokenizer: with its chat template.
        folder: where to write.
        dtype: of the weights.
        end_token_id: ends a response.
        weights: as `whole_weights` gives them, where this process does not hold all of them.
    """
    if weights is None:
        weights = whole_weights(causal_lm, dtype, lambda tensor: tensor)
    generation = causal_lm.generation_config
    generation.eos_token_id = _end_tokens(generation.eos_token_id, end_token_id)
    if any(getattr(generation, flag) not in (None, 1.0) for flag in ("temperature", "top_p")):
        generation.do_sample = True  # flags of sampling without it are refused on saving
    generation.pad_token_id = tokenizer.pad_token_id
    aside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    with quiet_transformers():
        causal_lm.save_pretrained(aside, state_dict=weights)
        tokenizer.save_pretrained(aside)
    config = json.loads((aside / "config.json").read_text())
    config["dtype"] = dtype  # transformers writes the precision of the model in memory, not that of the weights
    (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


@torch.no_grad()
def check_export(folder: Path, reloaded: Any, probe: torch.Tensor, logits: torch.Tensor, *, is_rounded: bool) -> None:
    """Refuse a written model whose logits are not those of the model in memory.

    Args:
        folder: where it was written.
        reloaded: the model that was read from there.
        probe: token ids of one sequence.
        logits: `[position vocab]` of the model in memory.
        is_rounded: whether it was computed or written in half precision.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    reloaded.eval()
    got = reloaded(input_ids=probe[None], use_cache=False).logits[0].float()
    error = ((got - logits).abs().max() / logits.abs().max()).item()
    if not error < (5e-2 if is_rounded else 1e-3):
        raise RuntimeError(f"{folder}: its logits are off by {error:.3g} of the largest of the model that was written")


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
