"""Load causal language models from a folder or the hub, and check that every weight is present and finite."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sftmix.errors import InputError, first_line
from sftmix.hub import looks_local, unavailable

LOCAL_COPY = "model=local model.path=..."
NAMES_SHOWN = 3
COMPLETE = "expected every weight that config.json implies and no other: copy, download or save the model again"
CONSTANTS = re.compile(r"(^|\.)(masked_bias|causal_mask|inv_freq|position_ids)$")  # buffers that older versions saved


def num_positions(path: str, revision: str | None) -> int | None:
    """Return the longest sequence that a model was made for, in tokens, or None if its config does not say."""
    return getattr(_config(path, revision).get_text_config(), "max_position_embeddings", None)


def num_embeddings(path: str, revision: str | None) -> int | None:
    """Return the number of token embeddings of a model, or None if its config is missing or has no number."""
    if looks_local(path) and not (Path(path) / "config.json").is_file():
        return None  # a tokenizer only, or an adapter
    return getattr(_config(path, revision).get_text_config(), "vocab_size", None)


def _config(path: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    return from_pretrained(AutoConfig, path, revision)


def load_causal_lm(path: str, revision: str | None, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """Return the causal language model of a folder or hub id.

    Each weight is converted while it is read, so the model is never in memory in another type or on another device.
    Casting a loaded model by `.to(dtype)` would also round the buffers that transformers keeps in float32, such as the
    frequencies of rotary embeddings.

    Args:
        dtype: Type of the weights, such as bfloat16. Training keeps float32 master weights.
        device: Device as torch calls it, such as cuda or cuda:1.

    Raises:
        InputError: If the model cannot be read, or if weights are missing, unexpected, of another shape or not finite.
    """
    causal_lm = _complete_causal_lm(path, revision, dtype=dtype, **({} if device == "cpu" else {"device_map": device}))
    check_finite(causal_lm.named_parameters(), _named(path))
    return causal_lm


def precision(dtype: str, device: str) -> dict[str, str]:
    """Return the settings that tell results of loaded models apart by the type of their weights and their device.

    Results of half precision from before `load_causal_lm` took a type have no `buffers`: theirs were rounded too.
    """
    return {"dtype": dtype, "device": device} | ({} if dtype == "float32" else {"buffers": "float32"})


def check_weights(path: str, revision: str | None) -> Any:
    """Return the causal language model on the meta device. Names and shapes of weights are checked, no value is read.

    Raises:
        InputError: As `load_causal_lm` does, but for values.
    """
    return _complete_causal_lm(path, revision, device_map="meta")


def check_finite(weights: Iterable[tuple[str, Any]], where: str) -> None:
    """Raise an InputError if one of the weights, given with their names, is NaN or infinite."""
    import torch

    for name, weight in weights:
        if not weight.is_floating_point() or math.isfinite(weight.sum().item()):
            continue
        count = int((~torch.isfinite(weight)).sum())
        if count:  # otherwise only the sum overflows
            raise InputError(
                f"{where}: {count:,} of the {weight.numel():,} values of weight {name} are not finite (NaN or "
                f"infinite), so the file is damaged or its training diverged: use another copy or checkpoint"
            )


def _complete_causal_lm(path: str, revision: str | None, **options: Any) -> Any:
    """Return the causal language model of a folder or hub id if transformers found every weight of it, and no other."""
    from transformers import AutoModelForCausalLM

    options = {"dtype": "float32", "use_safetensors": True, "output_loading_info": True} | options
    options["ignore_mismatched_sizes"] = True  # shapes are reported, not raised
    try:
        causal_lm, report = from_pretrained(AutoModelForCausalLM, path, revision, **options)
    except InputError:
        # transformers stacks experts while it reads them, and does not say which is missing
        absent = _absent_from_folder(path) if looks_local(path) else None
        if absent:
            raise InputError(f"{_named(path)}: {counted_names(absent, 'missing')}; {COMPLETE}") from None
        raise
    if getattr(causal_lm, "_hf_peft_config_loaded", False):
        raise InputError(f"{_named(path)}: an adapter, expected a whole model: merge it first")
    _check_report(causal_lm, report, path, revision)
    return causal_lm


def _check_report(causal_lm: Any, report: dict[str, Any], path: str, revision: str | None) -> None:
    """Refuse a model if transformers' loading report names a weight, or if weights that should be tied differ.

    The report already leaves out what the model class declares as ignorable, and weights that are tied.
    """
    buffers = {name for name, _ in causal_lm.named_buffers()}
    prefix, is_meta = causal_lm.base_model_prefix, next(causal_lm.parameters()).is_meta
    missing = sorted(report["missing_keys"])
    unexpected = sorted(
        name
        for name in report["unexpected_keys"]
        if not CONSTANTS.search(name) and buffers.isdisjoint({name, f"{prefix}.{name}"})
    )
    shapes = [f"{n} is {list(of_file)}, expected {list(own)}" for n, of_file, own in sorted(report["mismatched_keys"])]
    if unexpected and not missing and not shapes:
        config = _config(path, revision)
        text = config.get_text_config()
        if text is not config and type(causal_lm.config) is type(text):  # the text model of a multimodal folder
            if not is_meta:
                kinds = ", ".join(dict.fromkeys(name.split(".")[0] for name in unexpected))
                print(
                    f"model       {len(unexpected):,} weights that are not for text are left out: {kinds}", flush=True
                )
            unexpected = []
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    found = [counted_names(names, what) for what, names in faults.items() if names]
    found += map(first_line, report["error_msgs"])
    if found:
        raise InputError(f"{_named(path)}: {'; '.join(found)}; {_remedy(missing, unexpected, causal_lm)}")
    if is_meta:
        return
    for name, source in causal_lm.get_expanded_tied_weights_keys(all_submodels=True).items():
        if causal_lm.get_parameter_or_buffer(name) is not causal_lm.get_parameter_or_buffer(source):
            raise InputError(
                f"{_named(path)}: {name} differs from {source}, but config.json ties them (tie_word_embeddings=true): "
                f"set tie_word_embeddings=false in config.json to use both, or remove {name} from the weights"
            )


def counted_names(names: Sequence[str], what: str) -> str:
    """Return how many weights are `what`, such as missing, with the names of the first ones."""
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return f"{len(names):,} {'weight is' if len(names) == 1 else 'weights are'} {what} ({shown})"


def _remedy(missing: Sequence[str], unexpected: Sequence[str], causal_lm: Any) -> str:
    """Return what to do about weights that do not fit: unwrap the model, tie its head, or copy it again."""
    wrapped = next((name for name in unexpected if missing and name.endswith(f".{missing[0]}")), None)
    if wrapped is not None:
        return f"names begin with `{wrapped.removesuffix(missing[0])}`: save the model that is inside the wrapper"
    head = causal_lm.get_output_embeddings()
    if len(missing) == 1 and not unexpected and causal_lm.get_parameter_or_buffer(missing[0]) is head.weight:
        return f"{COMPLETE}, or set tie_word_embeddings=true in config.json if the head is the embeddings"
    return COMPLETE


def _absent_from_folder(path: str) -> list[str]:
    """Return the weights that a folder lacks, by the names that its files should have; [] if it cannot be known."""
    from safetensors import safe_open
    from transformers.core_model_loading import revert_weight_conversion

    names = set[str]()
    try:
        for file in Path(path).glob("*.safetensors"):
            with safe_open(file, "pt") as handle:
                names.update(handle.keys())
        empty = empty_causal_lm(path, None)
        tied = empty.get_expanded_tied_weights_keys(all_submodels=True)
        return sorted(set(revert_weight_conversion(empty, empty.state_dict())) - names - set(tied))
    except Exception:  # the error of reading the model is reported instead
        return []


def _named(path: str) -> str:
    return f"model folder {path}" if looks_local(path) else f"model {path}"


def empty_causal_lm(path: str, revision: str | None) -> Any:
    """Return the causal language model of a folder or hub id without weights, on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(path, revision)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def from_pretrained(auto: Any, path: str, revision: str | None, **options: Any) -> Any:
    """Call `from_pretrained` of a transformers class; raise an InputError if the folder or hub id cannot be read."""
    if looks_local(path):
        revision = None
    try:
        size = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
        with quiet_transformers(bars=not Path(path).is_dir() or size > 2**30):  # slow: from the hub, or above 1 GiB
            return auto.from_pretrained(path, revision=revision, trust_remote_code=False, **options)
    except Exception as error:  # a dozen types, by cause and version
        if type(error).__name__ == "OutOfMemoryError":  # torch's: the device is too small, the files are right
            raise
        if looks_local(path):
            raise InputError(f"{_named(path)}: could not be read ({first_line(error)})") from None
        raise unavailable("model", path, error, LOCAL_COPY) from None


@contextmanager
def quiet_transformers(bars: bool = False) -> Iterator[None]:
    """Silence the messages of transformers below errors, and its progress bars unless `bars` is true."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, hub_level = logging.get_verbosity(), hub_logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if had_bars:
            logging.enable_progress_bar()
