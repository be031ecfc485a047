"""LoRA (Table 8): adapters for the linear layers of a causal language model, saved as folders that PEFT reads.

A model with adapters is the base model with injected layers. Its body, its head, and the names of its modules are
unchanged, so other code can use it like the base model.
"""

import copy
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.files import replacing_folder, write_json
from sftmix.errors import InputError, first_line
from sftmix.models.loading import check_finite, counted_names, quiet_transformers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUANTIZATION = "quantization_config.json"  # of the base, in the form of `BitsAndBytesConfig` of transformers
NAME = "default"  # of the adapter; PEFT saves the one with this name without a subfolder


class Base(NamedTuple):
    """The model that an adapter was made for."""

    path: str  # folder or hub id
    revision: str | None  # commit of the hub id


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, with or without the weights of a whole model."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path, key: str) -> Base:
    """Return the base model of an adapter folder; raise an InputError if there is none, or no LoRA of the body only."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, targets = config.get("peft_type"), config.get("target_modules")
        path, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError):
        raise InputError(f"{key}={folder}: {CONFIG} in it cannot be read") from None
    if kind != "LORA":
        raise InputError(f"{key}={folder}: an adapter of kind {kind}, expected LORA")
    if "lm_head" in (targets if isinstance(targets, list) else []):
        raise InputError(f"{key}={folder}: an adapter of the head too (lm_head), which is not read here; merge it")
    if not isinstance(path, str) or not path:
        raise InputError(f"{key}={folder}: an adapter without its base, {CONFIG} in it names none")
    return Base(path, revision if isinstance(revision, str) else None)


def base_quantization(folder: Path, key: str) -> str | None:
    """Return the quantization of the base that an adapter folder names, or None if the base is not quantized.

    Raises:
        InputError: If the base has a quantization that is not known here.
    """
    file = folder / QUANTIZATION
    if not file.is_file():
        return None
    from sftmix.models.quantization import NF4, SETTINGS

    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if found != SETTINGS:
        raise InputError(f"{key}={folder}: {QUANTIZATION} in it is {found}, expected {SETTINGS}, or no such file")
    return NF4


def add_lora(
    causal_lm: Any, *, r: int, alpha: int, dropout: float, target_modules: str | Sequence[str], seed: int, base: Base
) -> Any:
    """Add LoRA adapters in float32 whose output is zero to a model, freeze every other weight, and return the model.

    Args:
        alpha: The output of an adapter is scaled by alpha / r.
        target_modules: all-linear (every linear layer except the head), or names of layers.
        seed: Seed of the initial weights, which are drawn on the CPU.
        base: The base model that the saved adapter names.

    Raises:
        InputError: If a name is not a linear layer or is the head, or if PEFT cannot adapt the family.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    from sftmix.models.quantization import import_bitsandbytes

    import_bitsandbytes()
    from peft import LoraConfig, get_peft_model

    _check_targets(causal_lm, target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in causal_lm.modules()),  # how GPT-2 lays its weights out
        revision=base.revision,
    )
    with torch.random.fork_rng(devices=[]), _quiet_peft():
        torch.default_generator.manual_seed(seed)
        try:
            adapted = get_peft_model(causal_lm, config).get_base_model()
        except ValueError as refusal:
            cause, family = first_line(refusal), causal_lm.config.model_type
            if dropout and "dropout" in cause:  # PEFT adapts the weights of experts without a layer to drop inputs of
                raise InputError(
                    f"model.lora.dropout={dropout:g}: model family {family} has weights of experts, which PEFT adapts "
                    f"only without dropout ({cause}): set model.lora.dropout=0"
                ) from None
            raise InputError(f"model.lora: model family {family} cannot ({cause})") from None
    config.base_model_name_or_path = base.path  # PEFT takes the name that the model in memory has
    return adapted


def _check_targets(causal_lm: Any, target_modules: str | Sequence[str]) -> None:
    """Refuse names that are not linear layers, and the head, whose weight the loss reads directly."""
    if isinstance(target_modules, str):  # PEFT leaves the head out
        return
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear = {name: m for name, m in causal_lm.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    head = causal_lm.get_output_embeddings()
    for target in target_modules:
        found = [m for name, m in causal_lm.named_modules() if f".{name}".endswith(f".{target}")]
        if any(m is head for m in found):
            raise InputError(f"model.lora.target_modules: {target} is the head, which takes no adapter")
        if not found or not all(m in linear.values() for m in found):
            names = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name, m in linear.items() if m is not head))
            raise InputError(
                f"model.lora.target_modules: {target} is not a linear layer of model family "
                f"{causal_lm.config.model_type}, which has {names}"
            )


def adapters_in_words(causal_lm: Any) -> str:
    """Return how many weights have adapters, the fraction of trained parameters, and which weights have no adapter.

    Weights that differ only in the index of their layer are listed once, biases and norms are only counted.
    """
    from peft.tuners.lora import LoraLayer

    from sftmix.models.quantization import parameter_sizes

    adapted = {
        id(getattr(module.get_base_layer(), getattr(module, "parameter_name", "weight")))
        for module in causal_lm.modules()
        if isinstance(module, LoraLayer)
    }
    sizes = {id(w): size for w, size in parameter_sizes(causal_lm)}
    frozen = {name: w for name, w in causal_lm.named_parameters() if ".lora_" not in name and id(w) in sizes}
    num_trained = sum(sizes[id(w)] for w in causal_lm.parameters() if w.requires_grad)
    total = sum(sizes.values())
    without = Counter[str]()
    for name, w in frozen.items():
        if id(w) not in adapted and w.dim() > 1:
            without[re.sub(r"(?<=\.)\d+(?=\.)", "*", name.replace(".base_layer", ""))] += w.numel()
    kinds = ", ".join(f"{kind} ({count / total:.1%})" for kind, count in without.items())
    num_vectors = sum(id(w) not in adapted and w.dim() <= 1 for w in frozen.values())
    return (
        f"adapters on {len(adapted)} of {len(frozen)} weights, {num_trained / total:.2%} of the parameters trained; "
        f"without adapters: {kinds}{', ' if kinds else ''}{num_vectors} biases and norms"
    )


def exact_in_bfloat16(causal_lm: Any) -> list[str]:
    """Return the names of the frozen weights under adapters that bfloat16 represents exactly, quantized ones aside."""
    import torch

    return [
        name
        for name, weight in causal_lm.named_parameters()
        if ".base_layer." in name
        and weight.is_floating_point()
        and not weight.requires_grad
        and torch.equal(weight.data.to(torch.bfloat16).to(weight.dtype), weight.data)
    ]


def hold_in_bfloat16(causal_lm: Any, names: Sequence[str]) -> None:
    """Convert frozen weights to bfloat16 for bf16-mixed computation. The outputs of the layers do not change by a bit.

    Autocast caches only the casts of trained weights. It would cast frozen weights in every forward pass and keep each
    cast for the backward pass.
    """
    import torch

    weights = dict(causal_lm.named_parameters())
    for name in names:
        weights[name].data = weights[name].data.to(torch.bfloat16)


def save_adapter(causal_lm: Any, tokenizer: Any, folder: Path, state_dict: Mapping[str, Any] | None = None) -> None:
    """Write the adapters as a complete PEFT folder: float32 safetensors, the name of the base, and the tokenizer.

    Args:
        state_dict: Gathered weights of the adapters, by the names of `causal_lm.state_dict()`. Required if the
            parameters are sharded.
    """
    import torch
    from safetensors.torch import save_file

    from sftmix.models.quantization import SETTINGS, quantization_of

    weights = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in (state_dict or causal_lm.state_dict()).items()
        if ".lora_" in name
    }
    config = copy.copy(causal_lm.peft_config[NAME])
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # the order of a set differs between processes
    with replacing_folder(folder) as aside:
        config.save_pretrained(aside)
        if quantization_of(causal_lm) is not None:
            write_json(aside / QUANTIZATION, SETTINGS)
        save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
        with quiet_transformers():
            tokenizer.save_pretrained(aside)


def load_adapter(causal_lm: Any, folder: Path, *, weights: bool = True) -> Any:
    """Add the adapters of a PEFT folder to a base model, which is quantized if the folder says so. Return the model.

    Args:
        weights: If False, add the adapters on the meta device, to a base on the meta device.

    Raises:
        InputError: If weights do not fit the base, are missing, unexpected or not finite, or adapt the head.
    """
    from sftmix.models.quantization import quantize

    if base_quantization(folder, "adapter") is not None:
        quantize(causal_lm)
    adapted = _with_adapter(causal_lm, folder, weights=weights).get_base_model().requires_grad_(False)
    if weights:
        check_finite(((n, w) for n, w in adapted.named_parameters() if ".lora_" in n), f"adapter {folder}")
    return adapted


def _with_adapter(causal_lm: Any, folder: Path, *, weights: bool = True) -> Any:
    import torch

    from sftmix.models.quantization import import_bitsandbytes

    import_bitsandbytes()
    from peft import PeftConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if weights and not (folder / WEIGHTS).is_file():  # PEFT would unpickle another file instead
        raise InputError(f"adapter {folder}: no {WEIGHTS} in it")
    try:
        with _quiet_peft(), nullcontext() if weights else torch.device("meta"):
            config = PeftConfig.from_pretrained(str(folder))
            config.base_model_name_or_path = None  # PEFT warns if it is not the name of the model in memory
            config.inference_mode = True
            peft_model: Any = get_peft_model(causal_lm, config, adapter_name=NAME)
            report = peft_model.load_adapter(str(folder), NAME, torch_device="cpu") if weights else None
    except Exception as error:  # a dozen types, by cause and version
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"adapter {folder}: does not fit its base ({cause})") from None
    faults = {} if report is None else {"missing": report.missing_keys, "unexpected": report.unexpected_keys}
    if found := [counted_names(sorted(names), what) for what, names in faults.items() if names]:
        raise InputError(f"adapter {folder}: does not fit its base, {' and '.join(found)}")
    if isinstance(peft_model.get_base_model().get_output_embeddings(), BaseTunerLayer):
        raise InputError(f"adapter {folder}: it adapts the head too, which is not read here; merge it")
    return peft_model


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Silence warnings of PEFT that are reported here in another way, or that do not apply."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*`is_gradient_checkpointing` is deprecated.*")
        warnings.filterwarnings("ignore", message=".*missing adapter keys.*")  # they are read from PEFT's report
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match any.*")  # wrong for experts
        yield


def merge(causal_lm: Any, folder: Path) -> Any:
    """Return a base model with the adapters of a PEFT folder added to its weights: an ordinary model.

    If the adapters were tuned on quantized weights, they are added to the dequantized ones. With the original weights
    they would be another model than the tuned one.

    Print a warning if its logits are not those of the base with its adapters.

    Raises:
        InputError: If the adapters do not fit the base, or if the logits are not finite.
    """
    import torch

    from sftmix.models.probes import probe_logits, warn_if_logits_differ
    from sftmix.models.quantization import dequantized

    if base_quantization(folder, "adapter") is not None:
        dequantized(causal_lm)
    peft_model = _with_adapter(causal_lm, folder).eval()
    apart = probe_logits(peft_model.get_base_model())
    if not torch.isfinite(apart).all():
        raise InputError(f"{folder}: the tuned model's logits are not finite: the run has diverged, lower model.lr")
    merged = peft_model.merge_and_unload()
    warn_if_logits_differ(probe_logits(merged), apart, f"{folder}, merged into its base", is_rounded=False)
    return merged
