"""Check the files of a local model or adapter folder before anything heavy is imported."""

import json
from collections.abc import Sequence
from pathlib import Path

from sftmix.errors import InputError
from sftmix.hub import looks_local
from sftmix.models.lora import CONFIG as ADAPTER_CONFIG
from sftmix.models.lora import WEIGHTS as ADAPTER_WEIGHTS
from sftmix.models.lora import base_of, is_adapter

NAMES_SHOWN = 3

# Weights that are not *.safetensors, by the ending of their names: what they are, and the remedy.
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
    **dict.fromkeys((".pth", ".pt", ".ckpt"), ("a pickle, which is not read because it can run code", DOWNLOAD)),
}
NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")  # files of a training state


def check_folder(path: str, key: str) -> None:
    """Raise an InputError if a local folder has no config, safetensors weights or tokenizer, or is an adapter."""
    folder = Path(path)
    _check_format(folder, key)
    if not folder.is_dir():
        raise InputError(f"{key}={path}: no such folder, expected a Hugging Face model folder or a hub id owner/name")
    if is_adapter(folder):
        raise InputError(f"{key}={path}: an adapter ({ADAPTER_CONFIG} in it), expected a whole model: merge it first")
    needed = {
        "config.json": (folder / "config.json").is_file(),
        "weights": any(folder.glob("*.safetensors")),
        "tokenizer": has_tokenizer(folder),
    }
    if lacking := [name for name, is_there in needed.items() if not is_there]:
        what = f"no {lacking[0]}" if len(lacking) == 1 else f"no {', '.join(lacking[:-1])} and {lacking[-1]}"
        raise InputError(f"{key}={path}: {what} in it, {_expected_beside(folder, lacking)}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if not all(shards):
                raise ValueError("an empty file name")
            absent = [name for name in sorted(shards) if not (folder / name).is_file()]
        except (ValueError, KeyError, TypeError, AttributeError):
            message = f"{key}: {index} is not an index of weights, expected a weight_map from names to files"
            raise InputError(message) from None
        if absent:
            raise InputError(f"{key}={path}: {absent[0]} is not in it, which its index names ({len(absent)} missing)")
    for file in folder.glob("*.safetensors"):
        _check_whole(file, key)


def _check_format(path: Path, key: str) -> None:
    """Refuse weights in a format that cannot be tuned. The message says what to download or convert."""
    files = [path] if path.is_file() else [f for part in ("*", "onnx/*", "original/*") for f in path.glob(part)]
    names = sorted(file.name for file in files if not file.name.startswith(NOT_WEIGHTS))
    if not any(name.endswith(".safetensors") for name in names):
        for end, (what, remedy) in FORMATS.items():
            found = next((name for name in names if name.lower().endswith(end)), None)
            if found is not None:
                where = f"{key}={path}" if path.is_file() else f"{key}={path}: no *.safetensors in it, and {found}"
                raise InputError(f"{where} is {what}: {remedy}")
    try:
        config = json.loads((path / "config.json").read_text())
        quantized = config.get("quantization_config") or config.get("quantization")  # the second is of MLX
    except (OSError, ValueError, AttributeError):  # reported when the config is read
        return
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        how = f" ({method})" if method else ""
        raise InputError(f"{key}={path}: its weights are quantized{how}, which cannot be tuned: {DOWNLOAD}")


def _expected_beside(folder: Path, lacking: Sequence[str]) -> str:
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


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()


def check_checkpoint(path: str, key: str) -> None:
    """Raise the errors of `check_folder` for a checkpoint, or an InputError if an adapter has no weights or no base."""
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
    """Refuse a safetensors file that is incomplete: shorter than its header says, or without weights."""
    with file.open("rb") as handle:
        head = handle.read(8)
        try:
            tensors = json.loads(handle.read(int.from_bytes(head, "little")))
            ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
            raise InputError(f"{key}: {file} is not a safetensors file") from None
    expected = 8 + int.from_bytes(head, "little") + max(ends, default=0)
    if file.stat().st_size < expected:
        raise InputError(f"{key}: {file} is cut off: {file.stat().st_size} bytes, expected {expected}")
    if not ends:
        raise InputError(f"{key}: {file} holds no weights")
