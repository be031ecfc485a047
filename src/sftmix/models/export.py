"""Export a tuned model as an ordinary Hugging Face folder."""

import copy
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.core_model_loading import revert_weight_conversion

from sftmix.artifacts.files import replacing_folder
from sftmix.errors import InputError, first_line
from sftmix.models.loading import quiet_transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def whole_weights(
    causal_lm: Any, dtype: str, whole: Callable[[torch.Tensor], torch.Tensor], *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """Return the weights of a model on the CPU, in the given dtype. Tied weights are one tensor under two names.

    Args:
        causal_lm: Its own precision does not change.
        whole: Gathers a tensor that is sharded over the ranks. Only one tensor at a time is whole on the device.
        keep: If False, empty tensors are returned: this rank only takes part in gathering.
    """
    converted: dict[int, torch.Tensor] = {}  # by the identity of the parameter, which tied weights share
    weights = {}
    for name, tensor in causal_lm.state_dict(keep_vars=True).items():
        if id(tensor) not in converted:
            kind = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
            gathered = whole(tensor.detach())
            converted[id(tensor)] = gathered.to("cpu", kind) if keep else gathered.new_empty(0)
            del gathered
        weights[name] = converted[id(tensor)]
    return weights


def export(
    causal_lm: Any,
    tokenizer: Any,
    folder: Path,
    dtype: str,
    end_token_id: int,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write weights (safetensors), config, tokenizer and chat template: the whole folder or nothing.

    Generation stops at the end tokens that the model had and at `end_token_id`. The other flags of generation are kept,
    except those that transformers refuses to save (`savable_generation_config`).

    Args:
        weights: What `whole_weights` returned, if this process does not hold all weights.

    Raises:
        InputError: If the written files do not hold the weights bit for bit.
    """
    if weights is None:
        weights = whole_weights(causal_lm, dtype, lambda tensor: tensor)
    causal_lm.generation_config = savable_generation_config(causal_lm, tokenizer, end_token_id)[0]
    with replacing_folder(folder) as aside:
        with quiet_transformers():
            causal_lm.save_pretrained(aside, state_dict=dict(weights))
            tokenizer.save_pretrained(aside)
        reverted = revert_weight_conversion(causal_lm, dict(weights))
        check_written(aside, reverted, causal_lm._keys_to_ignore_on_save or ())
        config = json.loads((aside / "config.json").read_text())
        config["dtype"] = dtype  # transformers writes the precision of the model in memory, not of the weights
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def check_written(folder: Path, weights: Mapping[str, torch.Tensor], ignored: Iterable[str] = ()) -> None:
    """Compare the safetensors files of a folder with the weights that they should hold, bit for bit.

    Args:
        weights: Tensors by the names in the files; of tensors that share memory, one is enough in the files.
        ignored: Names that need not be in the files.

    Raises:
        InputError: If a tensor is missing or differs.
    """
    written = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118
                expected, found = weights.get(name), handle.get_tensor(name)
                if expected is None or found.dtype != expected.dtype or not _are_same_bits(found, expected):
                    raise InputError(
                        f"{file}: weight {name} is not what was written to it, check the disk and run again"
                    )
                written.add((expected.data_ptr(), expected.shape))
    names = weights.keys() - set(ignored)
    lacking = sorted(name for name in names if (weights[name].data_ptr(), weights[name].shape) not in written)
    if lacking:
        raise InputError(f"{folder}: {len(lacking)} weights were not written ({', '.join(lacking[:3])})")


def _are_same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors of one type have the same shape and bytes. NaN equals NaN."""
    as_bytes = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return a.shape == b.shape and torch.equal(*as_bytes)


def savable_generation_config(causal_lm: Any, tokenizer: Any, end_token_id: int) -> tuple[Any, dict[str, Any]]:
    """Return the generation config of a model with its end tokens, and the flags that had to be reset.

    Transformers refuses to save flags that have no effect, such as `top_k` without sampling. The flags that its own
    strict validation names are reset to their defaults. `do_sample` never changes.

    Raises:
        InputError: If the validation still refuses the generation config.
    """
    from transformers import GenerationConfig

    generation, defaults = copy.deepcopy(causal_lm.generation_config), GenerationConfig()
    known = generation.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    ends += [] if end_token_id in ends else [end_token_id]
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends
    generation.pad_token_id = tokenizer.pad_token_id
    reset: dict[str, Any] = {}
    while True:
        try:
            with quiet_transformers():
                generation.validate(strict=True)
            return generation, reset
        except (ValueError, TypeError) as refusal:
            named = re.findall(r"^- `(\w+)`:", str(refusal), re.MULTILINE) or re.findall(r"`(\w+)`", str(refusal))
            flags = {name: getattr(generation, name) for name in named if hasattr(generation, name)}
            flags = {k: v for k, v in flags.items() if k != "do_sample" and v != getattr(defaults, k, None)}
            if not flags:
                cause = first_line(refusal)
                raise InputError(f"generation_config.json of the model cannot be saved again ({cause})") from None
            for name in flags:
                if hasattr(defaults, name):
                    setattr(generation, name, getattr(defaults, name))
                else:
                    delattr(generation, name)
            reset |= flags


def check_saving(causal_lm: Any, tokenizer: Any, end_token_id: int) -> dict[str, Any]:
    """Save config, generation config and tokenizer once to a temporary folder, before anything is trained.

    The model gets the generation config that can be saved, and the flags that had to be reset are returned.

    Raises:
        InputError: If transformers refuses to save one of them.
    """
    causal_lm.generation_config, reset = savable_generation_config(causal_lm, tokenizer, end_token_id)
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        try:
            causal_lm.save_pretrained(folder, state_dict={})
            tokenizer.save_pretrained(folder)
        except Exception as error:  # a dozen types, by cause and version
            cause = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(
                f"model family {causal_lm.config.model_type}: its config or tokenizer cannot be saved ({cause}): "
                f"correct the files in the model's folder"
            ) from None
    return reset
