"""Models and tokenizers from a local folder, from the hub, or built from a config of the project's own."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.hub import looks_local, unavailable
from sftmix.models.lora import CONFIG as ADAPTER_CONFIG
from sftmix.models.lora import WEIGHTS as ADAPTER_WEIGHTS
from sftmix.models.lora import base_of, is_adapter
from sftmix.models.quiet import quiet_transformers

LOCAL_COPY = "model=local model.path=..."

NAMES_SHOWN = 3
COMPLETE = "expected every weight that config.json implies and no other: copy, download or save the model again"
CONSTANTS = re.compile(r"(^|\.)(masked_bias|causal_mask|inv_freq|position_ids)$")  # buffers that older versions saved

PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")


def check_folder(path: str, key: str) -> None:
    """Refuse a local folder that no model can be read from, before anything heavy is imported.

    Args:
        path: The folder.
        key: The setting that named the folder, for the message.

    Raises:
        InputError: If the folder does not exist, is an adapter, or has no config, safetensors weights or tokenizer.
    """
    folder = Path(path)
    _check_format(folder, key)
    if not folder.is_dir():
        raise InputError(f"{key}={path}: no such folder, expected a Hugging Face model folder or a hub id owner/name")
    if is_adapter(folder):
        raise InputError(f"{key}={path}: an adapter ({ADAPTER_CONFIG} in it), expected a whole model: merge it first")
    has_weights = any(folder.glob("*.safetensors"))
    needed = {
        "config.json": (folder / "config.json").is_file(),
        "weights": has_weights,
        "tokenizer": has_tokenizer(folder),
    }
    lacking = [name for name, is_there in needed.items() if not is_there]
    if lacking:
        what = f"no {lacking[0]}" if len(lacking) == 1 else f"no {', '.join(lacking[:-1])} and {lacking[-1]}"
        raise InputError(f"{key}={path}: {what} in it, {_expected_beside(folder, lacking)}")
    index = folder / "model.safetensors.index.json"
    shards = _shards_of(index, key) if index.is_file() else set()
    absent = sorted(name for name in shards if not (folder / name).is_file())
    if absent:
        raise InputError(f"{key}={path}: {absent[0]} is not in it, which its index names ({len(absent)} lacking)")
    for file in folder.glob("*.safetensors"):
        _check_whole(file, key)


# Weights that are not *.safetensors, by the ends of their names: what they are, and the remedy.
DOWNLOAD = "download the original model, a folder or repository with config.json and *.safetensors"
CONVERT = "load it with transformers where you trust it and save it again (save_pretrained writes *.safetensors)"
FORMATS = {
    ".gguf": ("a GGUF file, whose weights are made for inference and cannot be tuned", DOWNLOAD),
    ".onnx": ("an ONNX file, which is made for inference and cannot be tuned", DOWNLOAD),
    ".npz": ("a file of MLX, which is not read", DOWNLOAD),
    ".h5": ("a file of TensorFlow, which is not read", DOWNLOAD),
    ".msgpack": ("a file of Flax, which is not read", DOWNLOAD),
    ".nemo": ("a file of NeMo, which is not read", DOWNLOAD),
    ".bin": ("a pickle, which is not read because it can run code", CONVERT),
    ".pth": ("a pickle, which is not read because it can run code", DOWNLOAD),
    ".pt": ("a pickle, which is not read because it can run code", DOWNLOAD),
    ".ckpt": ("a pickle, which is not read because it can run code", DOWNLOAD),
}
NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # of a trainer's folder


def _check_format(path: Path, key: str) -> None:
    """Refuse a file or folder whose weights are in a format that cannot be tuned.

    Raises:
        InputError: what the weights are, and what to download or convert.
    """
    places = (
        [path] if path.is_file() else [found for part in ("*", "onnx/*", "original/*") for found in path.glob(part)]
    )
    names = sorted(found.name for found in places if not found.name.startswith(NOT_WEIGHTS))
    if not any(name.endswith(".safetensors") for name in names):
        for end, (what, remedy) in FORMATS.items():
            found = next((name for name in names if name.lower().endswith(end)), None)
            if found is not None:
                where = f"{key}={path}" if path.is_file() else f"{key}={path}: no *.safetensors in it, and {found}"
                raise InputError(f"{where} is {what}: {remedy}")
    try:
        config = json.loads((path / "config.json").read_text())
        quantized = config.get("quantization_config") or config.get("quantization")  # the second is of MLX
    except (OSError, ValueError, AttributeError):  # said where the configuration is read
        return
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        how = f" ({method})" if method else ""
        raise InputError(f"{key}={path}: its weights are quantized{how}, which cannot be tuned: {DOWNLOAD}")


def _expected_beside(folder: Path, lacking: Sequence[str]) -> str:
    """Return what a folder should hold instead, from what it does hold: for the message of an incomplete folder."""
    checkpoints = sorted(
        (f for f in folder.iterdir() if (f / "config.json").is_file() or is_adapter(f)),
        key=lambda f: [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in f.name.split("-")],
    )
    if checkpoints and lacking[0] != "tokenizer":
        shown = [f.name for f in checkpoints[:NAMES_SHOWN]] + ["..."] * (len(checkpoints) > NAMES_SHOWN)
        return f"but models in {', '.join(shown)}: expected one of them, such as {checkpoints[-1]}"
    files = {"config.json": "config.json", "weights": "*.safetensors", "tokenizer": "tokenizer.json"}
    expected = f"expected {', '.join(files[name] for name in lacking)}"
    slow = next((name for name in ("tokenizer.model", "vocab.json", "spiece.model") if (folder / name).is_file()), None)
    if slow is not None and "tokenizer" in lacking:
        expected += f"; {slow} is not enough"
        if "config.json" not in lacking:
            expected += ", AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes tokenizer.json"
    return expected


def _shards_of(index: Path, key: str) -> set[str]:
    """Return the names of the files of weights that an index names.

    Raises:
        InputError: If the index cannot be read.
    """
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        shards = {None}
    if not all(isinstance(name, str) and name for name in shards):
        raise InputError(f"{key}: {index} is not an index of weights, expected a weight_map of names to files")
    return shards


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer is in a folder."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()


def check_checkpoint(path: str, key: str) -> None:
    """Refuse a checkpoint that no model can be read from: a model's folder, or an adapter's with its base.

    Args:
        path: the folder.
        key: the setting that named it, for the message.

    Raises:
        InputError: as `check_folder`, or an adapter without weights or without its base.
    """
    folder = Path(path)
    if not is_adapter(folder):
        check_folder(path, key)
        return
    base = base_of(folder, key)
    if looks_local(base.path) and not Path(base.path).expanduser().is_dir():
        raise InputError(f"{key}={path}: an adapter without its base, there is no folder {base.path}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{key}={path}: no weights in it, expected {ADAPTER_WEIGHTS}")
    _check_whole(folder / ADAPTER_WEIGHTS, key)
    if looks_local(base.path):
        check_folder(str(Path(base.path).expanduser()), f"{key}={path}: its base")


def _check_whole(file: Path, key: str) -> None:
    """Refuse a file of weights that ends before its header says."""
    with file.open("rb") as handle:
        head = handle.read(8)
        try:
            tensors = json.loads(handle.read(int.from_bytes(head, "little")))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
            raise InputError(f"{key}: {file} is no safetensors file") from None
    expected = 8 + int.from_bytes(head, "little") + max(ends, default=0)
    if file.stat().st_size < expected:
        raise InputError(f"{key}: {file} is cut off: {file.stat().st_size} bytes, expected {expected}")
    if not ends:
        raise InputError(f"{key}: {file} holds no weights")


def load_tokenizer(path: str, revision: str | None, pad_token: str | None) -> Any:
    """The tokenizer of a folder or hub id, with a pad token that is in its vocabulary and has an embedding.

    Raises:
        InputError: it cannot be had, or the wanted pad token is not in its vocabulary.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = _from_pretrained(AutoTokenizer, path, revision)
    except InputError as error:
        if not looks_local(path) or (Path(path).expanduser() / "tokenizer.json").is_file():
            raise
        raise InputError(
            f"{error}; there is no tokenizer.json in it: load the tokenizer with the package that made it and save it "
            f"again (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))"
        ) from None
    if tokenizer.eos_token is None:
        raise InputError(f"model {path}: its tokenizer has no end token (eos_token)")
    set_pad_token(tokenizer, pad_token, num_embeddings(path, revision))
    tokenizer.padding_side = "right"
    return tokenizer


def set_pad_token(tokenizer: Any, pad_token: str | None, num_embeddings: int | None = None) -> None:
    """Give the tokenizer a pad token without growing its vocabulary.

    The first of these that has an embedding is taken: the requested one, its own, one of the usual names, the unknown
    token, the end token. Nothing here removes the loss of a token because of its id, so the pad token may equal the end
    token. Padding goes through the model's embeddings, so a pad token that was added without resizing the model cannot
    be used.

    Args:
        tokenizer: its `pad_token` is set.
        pad_token: the requested one.
        num_embeddings: of the model; None: not known, every token counts.

    Raises:
        InputError: If the requested pad token is not in the vocabulary or has no embedding.
    """
    vocabulary = tokenizer.get_vocab()
    if pad_token is not None and pad_token not in vocabulary:
        raise InputError(f"model.pad_token={pad_token}: not in the tokenizer's vocabulary")
    if num_embeddings is not None:
        vocabulary = {token: i for token, i in vocabulary.items() if i < num_embeddings}
    if pad_token is not None and pad_token not in vocabulary:
        raise InputError(
            f"model.pad_token={pad_token}: its id is {tokenizer.convert_tokens_to_ids(pad_token)} and the model has "
            f"{num_embeddings:,} embeddings, expected a token with an embedding"
        )
    candidates = (pad_token, tokenizer.pad_token, *PAD_TOKENS, tokenizer.unk_token)
    tokenizer.pad_token = next((token for token in candidates if token in vocabulary), tokenizer.eos_token)


def num_positions(path: str, revision: str | None) -> int | None:
    """The longest sequence that a model was made for, in tokens, or None where its config does not say.

    Raises:
        InputError: its config cannot be had.
    """
    return getattr(_text_config(path, revision), "max_position_embeddings", None)


def num_embeddings(path: str, revision: str | None) -> int | None:
    """Return the number of token embeddings of a model, or None if a folder has no config or the config has no number.

    Raises:
        InputError: If the config cannot be read.
    """
    if looks_local(path) and not (Path(path) / "config.json").is_file():
        return None  # a tokenizer only, or an adapter
    return getattr(_text_config(path, revision), "vocab_size", None)


def _text_config(path: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, path, revision).get_text_config()


def load_causal_lm(path: str, revision: str | None) -> Any:
    """Return the causal language model of a folder or hub id in float32: training keeps master weights.

    Raises:
        InputError: If the model cannot be read, if weights are missing, unexpected or of another shape, or if a weight
            is not finite.
    """
    causal_lm = _complete_causal_lm(path, revision)
    check_finite(causal_lm.named_parameters(), _named(path))
    return causal_lm


def check_weights(path: str, revision: str | None) -> None:
    """Compare the names and shapes of the weights of a folder or hub id with its config; no value is read.

    Raises:
        InputError: If the model cannot be read, or if weights are missing, unexpected or of another shape.
    """
    _complete_causal_lm(path, revision, device_map="meta")


def check_finite(weights: Iterable[tuple[str, Any]], where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        weights: Names and tensors.
        where: Where the weights come from, for the message.

    Raises:
        InputError: If a weight is not finite.
    """
    import torch

    for name, weight in weights:
        if not weight.is_floating_point() or math.isfinite(weight.sum().item()):
            continue
        number = int((~torch.isfinite(weight)).sum())
        if number:  # else only the sum is too large for its type
            raise InputError(
                f"{where}: {number:,} of the {weight.numel():,} values of weight {name} are not finite (NaN or "
                f"infinite), so the file is damaged or its training diverged: use another copy or checkpoint"
            )


def _complete_causal_lm(path: str, revision: str | None, **options: Any) -> Any:
    """Return the causal language model of a folder or hub id if transformers found every weight of it, and no other."""
    import torch
    from transformers import AutoModelForCausalLM

    options |= {"dtype": torch.float32, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # shapes are reported, not raised
    try:
        causal_lm, report = _from_pretrained(AutoModelForCausalLM, path, revision, **options)
    except InputError:
        absent = _absent_from_folder(path) if looks_local(path) else []
        if absent:  # experts are stacked while they are read: if one is missing, transformers names none
            raise InputError(f"{_named(path)}: {_counted(absent, 'missing')}; {COMPLETE}") from None
        raise
    if getattr(causal_lm, "_hf_peft_config_loaded", False):
        raise InputError(f"{_named(path)}: an adapter, expected a whole model: merge it first")
    _check_report(causal_lm, report, path, revision)
    return causal_lm


def _check_report(causal_lm: Any, report: dict[str, Any], path: str, revision: str | None) -> None:
    """Refuse a model if transformers' loading report names a weight, or if weights that should be tied differ.

    The report already leaves out what the model class declares as ignorable, and weights that are tied.

    Raises:
        InputError: If a weight is missing, unexpected or of another shape, or tied to a weight that differs.
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
    if unexpected and not missing and not shapes and _is_text_part(causal_lm, path, revision):
        if not is_meta:
            kinds = ", ".join(dict.fromkeys(name.split(".")[0] for name in unexpected))
            print(f"model       {len(unexpected):,} weights that are not for text are left out: {kinds}", flush=True)
        unexpected = []
    found = [
        _counted(names, what)
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
        if names
    ]
    found += [str(message).split("\n")[0] for message in report["error_msgs"]]
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


def _counted(names: Sequence[str], what: str) -> str:
    """Return a count of weights with the first names."""
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return f"{len(names):,} {'weight is' if len(names) == 1 else 'weights are'} {what} ({shown})"


def _remedy(missing: Sequence[str], unexpected: Sequence[str], causal_lm: Any) -> str:
    """Return what to do about weights that do not fit: unwrap the model, tie its head, or copy it again."""
    for name in missing[:1]:
        wrapped = next((other for other in unexpected if other.endswith(f".{name}")), None)
        if wrapped is not None:
            return f"names begin with `{wrapped.removesuffix(name)}`: save the model that is inside the wrapper"
    head = causal_lm.get_output_embeddings()
    if len(missing) == 1 and not unexpected and causal_lm.get_parameter_or_buffer(missing[0]) is head.weight:
        return f"{COMPLETE}, or set tie_word_embeddings=true in config.json if the head is the embeddings"
    return COMPLETE


def _is_text_part(causal_lm: Any, path: str, revision: str | None) -> bool:
    """Return whether a model is only the text model of a multimodal folder or hub id."""
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig, path, revision)
    text = config.get_text_config()
    return text is not config and type(causal_lm.config) is type(text)


def _absent_from_folder(path: str) -> list[str]:
    """Return the weights that a folder lacks, by the names that its files should have; [] if it cannot be known."""
    from safetensors import safe_open
    from transformers.core_model_loading import revert_weight_conversion

    names: set[str] = set()
    try:
        for file in Path(path).glob("*.safetensors"):
            with safe_open(file, "pt") as handle:
                names.update(handle.keys())
        empty = empty_causal_lm(path, None)
        tied = empty.get_expanded_tied_weights_keys(all_submodels=True)
        return sorted(set(revert_weight_conversion(empty, empty.state_dict())) - names - set(tied))
    except Exception:  # the cause why the model was not read is reported instead
        return []


def _named(path: str) -> str:
    """Return what messages call a model."""
    return f"model folder {path}" if looks_local(path) else f"model {path}"


def empty_causal_lm(path: str, revision: str | None) -> Any:
    """The causal language model of a folder or hub id without weights, on the meta device.

    Raises:
        InputError: its config cannot be had.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _from_pretrained(AutoConfig, path, revision)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _is_large(path: str) -> bool:
    """Whether reading a model takes long enough to show it: from the hub, or more than a gigabyte."""
    folder = Path(path)
    return not folder.is_dir() or sum(f.stat().st_size for f in folder.glob("*.safetensors")) > 2**30


def _from_pretrained(auto: Any, path: str, revision: str | None, **options: Any) -> Any:
    if looks_local(path):
        revision = None
    try:
        with quiet_transformers(bars=_is_large(path)):
            return auto.from_pretrained(path, revision=revision, trust_remote_code=False, **options)
    except Exception as error:  # a dozen types, by cause and version
        if looks_local(path):
            cause = next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)[:160]
            raise InputError(f"{_named(path)}: could not be read ({cause})") from None
        raise unavailable("model", path, error, LOCAL_COPY) from None
