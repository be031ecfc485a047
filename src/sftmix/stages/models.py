"""Load the model and tokenizer of a run, and the checkpoints that score."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import making
from sftmix.artifacts.manifest import verify
from sftmix.config.model import Model
from sftmix.config.schema import Config, to_dict
from sftmix.data.demo import demo_texts
from sftmix.errors import InputError
from sftmix.hub import looks_local
from sftmix.models.folder_check import has_tokenizer
from sftmix.models.loading import empty_causal_lm, load_causal_lm, num_embeddings, num_positions
from sftmix.models.lora import Base, add_lora, is_adapter, load_adapter
from sftmix.models.tiny import tiny_llama, tiny_tokenizer
from sftmix.models.tokenizer import load_tokenizer, set_pad_token
from sftmix.stages.inputs import checkpoint_base
from sftmix.stages.plan import base_artifact

# The embedded tokenizer is trained on the default embedded data set, whatever the data of the run.
TINY_TEXTS = {"num_examples": 2000, "seed": 0}


def load_model_tokenizer(model: Model) -> Any:
    """Return the tokenizer of a model, with a pad token."""
    if model.init is None:
        return load_tokenizer(str(model.path), model.revision, model.pad_token)
    tokenizer = copy.deepcopy(_embedded_tokenizer(model.init.vocab_size))
    set_pad_token(tokenizer, model.pad_token)
    return tokenizer


@cache
def _embedded_tokenizer(vocab_size: int) -> Any:
    return tiny_tokenizer(demo_texts(**TINY_TEXTS), vocab_size)


def load_model(model: Model, *, weights: bool = True) -> Any:
    """Return a model with its weights in float32. If `weights=False`, return it on the meta device."""
    if model.init is not None:
        shape = {key: value for key, value in to_dict(model.init).items() if key != "vocab_size"}
        return tiny_llama(load_model_tokenizer(model), **shape, weights=weights)
    return (load_causal_lm if weights else empty_causal_lm)(str(model.path), model.revision)


def load_trainable_model(model: Model, root: str, seed: int, *, weights: bool = True) -> Any:
    """Return a model to tune: all weights in float32 or, with LoRA, new adapters beside frozen or quantized weights.

    Args:
        root: Folder of all artifacts. Adapters of the embedded model name a folder in it as their base.
        weights: False builds the model on the meta device. Only the first rank has the weights.
    """
    causal_lm = load_model(model, weights=weights)
    if model.lora is None:
        return causal_lm
    base = _base_of(model, root) if weights else Base("", None)  # only the rank with the weights writes adapters
    return _with_new_adapters(causal_lm, model, seed, base)


def check_model(model: Model, max_seq_len: int) -> None:
    """Refuse a model with too few positions for the data, or whose layers cannot be quantized or have its adapters."""
    if model.init is not None:
        positions: int | None = model.init.max_position_embeddings
    else:
        positions = num_positions(str(model.path), model.revision)
    if positions is not None and max_seq_len > positions:
        raise InputError(
            f"data.max_seq_len={max_seq_len}: model {model.title} has {positions} positions, set "
            f"data.max_seq_len={positions}"
        )
    if model.lora is not None:
        _with_new_adapters(load_model(model, weights=False), model, 0, Base("", None))


def _with_new_adapters(causal_lm: Any, model: Model, seed: int, base: Base) -> Any:
    """Add the adapters of a config to a model, whose other weights are quantized if the config says so."""
    if model.quantization is not None:
        from sftmix.models.quantization import quantize  # it imports torch

        quantize(causal_lm)
    arguments = {key: value for key, value in to_dict(model.lora).items() if key != "lr_factor"}
    return add_lora(causal_lm, **arguments, seed=seed, base=base)


def _base_of(model: Model, root: str) -> Base:
    """Return what an adapter names as its base. The embedded model is written to a folder for that."""
    if model.init is None:
        local = looks_local(str(model.path))
        return Base(str(Path(str(model.path)).resolve()) if local else str(model.path), model.revision)
    artifact = base_artifact(root, model)
    with making(artifact) as folder:
        if folder is not None:
            from sftmix.models.export import export  # it imports torch

            tokenizer = load_model_tokenizer(model)
            export(load_model(model), tokenizer, folder / "model", "float32", tokenizer.eos_token_id)
    verify(artifact.folder)
    return Base(str((artifact.folder / "model").resolve()), None)


def load_checkpoint(config: Config, checkpoint: Path, *, weights: bool = True) -> Any:
    """Return the model of a checkpoint. If `weights=False`, return it on the meta device.

    For a LoRA checkpoint, load the base model and attach the adapter.
    """
    load = load_causal_lm if weights else empty_causal_lm
    if not is_adapter(checkpoint):
        return load(str(checkpoint), None)
    if config.confidence.checkpoints is None:  # the reference's own base is found even if `root` has moved
        base = load_model(config.reference.model, weights=weights)
    else:
        base = load(*checkpoint_base(config, checkpoint))
    return load_adapter(base, checkpoint, weights=weights)


def load_untuned_model(model: Model, *, weights: bool = True) -> Any:
    """Return a model as its tuning starts, without adapters. Its weights are quantized if the config says so.

    If `weights=False`, return it on the meta device.
    """
    causal_lm = load_model(model, weights=weights)
    if model.quantization is not None:
        from sftmix.models.quantization import quantize  # it imports torch

        quantize(causal_lm)
    return causal_lm


def load_checkpoint_tokenizer(config: Config, checkpoint: Path) -> tuple[Any, int | None]:
    """Return the tokenizer of a checkpoint, with a pad token, and the number of embeddings of its model.

    A LoRA checkpoint without a tokenizer has the tokenizer of its base. The number is None for a LoRA checkpoint of the
    reference, whose tokenizer is checked when the data is prepared.
    """
    own = base = Base(str(checkpoint), None)
    is_of_reference = config.confidence.checkpoints is None
    if is_adapter(checkpoint) and not is_of_reference:
        base = checkpoint_base(config, checkpoint)
    tokenizer = load_tokenizer(*(own if has_tokenizer(checkpoint) else base), None)
    embeddings = None if is_adapter(checkpoint) and is_of_reference else num_embeddings(*base)
    set_pad_token(tokenizer, None, embeddings)
    return tokenizer, embeddings
