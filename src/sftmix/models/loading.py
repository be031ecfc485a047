"""Models and tokenizers from a local folder, from the hub, or built from a config of the project's own."""

import json
from pathlib import Path
from typing import Any

from sftmix.errors import InputError
from sftmix.hub import looks_local, not_given
from sftmix.models.lora import CONFIG as ADAPTER_CONFIG
from sftmix.models.lora import WEIGHTS as ADAPTER_WEIGHTS
from sftmix.models.lora import base_of, is_adapter
from sftmix.models.quiet import quiet_transformers

LOCAL_COPY = "model=local model.path=..."

PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")


def check_folder(path: str, key: str) -> None:
    """Refuse a local folder that no model can be read from, before anything heavy is imported.

    Args:
        path: the folder.
        key: the setting that named it, for the message.

    Raises:
        InputError: no such folder, or one without config, safetensors weights or tokenizer, or an adapter's.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{key}={path}: no such folder, expected a Hugging Face model folder or a hub id owner/name")
    if is_adapter(folder):
        raise InputError(f"{key}={path}: an adapter ({ADAPTER_CONFIG} in it), expected a whole model: merge it first")
    if not (folder / "config.json").is_file():
        raise InputError(f"{key}={path}: no config.json in it, expected a Hugging Face model folder")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(f.name for f in folder.glob("*.bin"))
        beside = f"; {pickled[0]} is a pickle, which is not read" if pickled else ""
        raise InputError(f"{key}={path}: no weights in it, expected *.safetensors{beside}")
    if not has_tokenizer(folder):
        raise InputError(f"{key}={path}: no tokenizer in it, expected tokenizer.json")
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    lacking = sorted(name for name in shards if not (folder / name).is_file())
    if lacking:
        raise InputError(f"{key}={path}: {lacking[0]} is not in it, which its index names ({len(lacking)} lacking)")
    for file in folder.glob("*.safetensors"):
        _check_whole(file, key)


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
        except (ValueError, KeyError, OverflowError, MemoryError):
            raise InputError(f"{key}: {file} is no safetensors file") from None
    expected = 8 + int.from_bytes(head, "little") + max(ends, default=0)
    if file.stat().st_size < expected:
        raise InputError(f"{key}: {file} is cut off: {file.stat().st_size} bytes, expected {expected}")


def load_tokenizer(path: str, revision: str | None, pad_token: str | None) -> Any:
    """The tokenizer of a folder or hub id, with a pad token that is in its vocabulary and has an embedding.

    Raises:
        InputError: it cannot be had, or the wanted pad token is not in its vocabulary.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, path, revision)
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
    if looks_local(path) and not (Path(path).expanduser() / "config.json").is_file():
        return None  # a tokenizer only, or an adapter
    return getattr(_text_config(path, revision), "vocab_size", None)


def _text_config(path: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, path, revision).get_text_config()


def load_causal_lm(path: str, revision: str | None) -> Any:
    """The causal language model of a folder or hub id, in float32: training keeps master weights.

    Raises:
        InputError: it cannot be had.
    """
    import torch
    from transformers import AutoModelForCausalLM

    return _from_pretrained(AutoModelForCausalLM, path, revision, dtype=torch.float32, use_safetensors=True)


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
            raise InputError(f"model folder {path}: could not be read ({cause})") from None
        raise not_given("model", path, error, LOCAL_COPY) from None
