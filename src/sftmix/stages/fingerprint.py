"""What enters the fingerprints of artifacts: everything that their content depends on, and nothing else.

Two configs whose fields are equal share an artifact. What a field leaves out changes nothing that is learned.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import FIRST_EPOCH, Artifact
from sftmix.artifacts.hashes import content_hash
from sftmix.config.data import Data, Replacement, Source
from sftmix.config.entries import result_changing
from sftmix.config.model import Model
from sftmix.config.recipe import used_terms
from sftmix.config.schema import WINDOW, Config, to_dict
from sftmix.data.demo import demo_rows
from sftmix.data.encoding import ENCODING
from sftmix.data.files import data_files, kind_of_file, local_copy
from sftmix.data.templates import template_source
from sftmix.hub import looks_local
from sftmix.models.lora import Base, is_adapter
from sftmix.stages.inputs import checkpoint_base

TOKENIZER_FILES = ("*token*.json", "vocab.json", "*.model", "*.txt", "*.jinja")
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
SCHEDULE = 2  # increased whenever the same settings give other learning rates; 2: warm-up counted from step 1
READING = 4  # increased whenever the same source gives other examples, or its data report is written differently
SPLIT_FORMAT = 2  # increased whenever split.parquet has other columns or values; 2: `subset` (was `half`)


def hash_cache(config: Config) -> Path:
    """Return the file under `root` that remembers the hashes of input files."""
    return Path(config.root) / ".hashes.json"


def run_fields(
    config: Config, data: Mapping[str, Any], precision: str, num_checkpoints: int | None = None
) -> dict[str, Any]:
    """Return what a training run depends on, except for the split of its examples.

    Only an NTP run on all examples, whose checkpoints may score, has `num_checkpoints`.
    """
    fields = {
        "kind": "run",
        "data": {**data, "epochs": config.data.epochs},
        "model": _model_fields(config.model, hash_cache(config)),
        "recipe": _recipe_fields(config),
        "seed": config.seed,
        "precision": precision,
    }
    if callbacks := result_changing(config.callbacks):
        fields["callbacks"] = callbacks
    if files := config.data.val_files:  # they change no weight, but the losses of these files belong to the run
        rows = {name: _rows_of(config.data, files[name], hash_cache(config)) for name in sorted(files)}
        fields["val_sets"] = rows
    return fields if num_checkpoints is None else {**fields, "num_checkpoints": num_checkpoints}


def confidence_fields(
    config: Config, data: Mapping[str, Any], precision: str, reference: Artifact | None
) -> dict[str, Any]:
    """Return what the scores of the examples depend on.

    If `reference` is None, the untuned `reference.model` scores (confidence.from=base), or `confidence.checkpoints` do.
    """
    if reference is not None:
        checkpoints: Any = reference.fingerprint
    elif config.confidence.from_ == "base":
        model = _model_fields(replace(config.reference.model, lora=None), hash_cache(config))
        checkpoints = {"base": {key: value for key, value in model.items() if key != "dtype"}}
    else:
        cache, checkpoints = hash_cache(config), []
        for folder in map(Path, config.confidence.checkpoints or []):
            sha256: Any = content_hash(folder, cache, MODEL_FILES)
            if is_adapter(folder):
                base = _folder_fields(checkpoint_base(config, folder), cache, MODEL_FILES)
                sha256 = {"sha256": sha256, "base": base}
            checkpoints.append(sha256)
    return {"kind": "confidence", "data": data, "checkpoints": checkpoints, "precision": precision}


def split_fields(config: Config, confidence: Artifact | None) -> dict[str, Any]:
    """Return what the two subsets depend on, beside the data and the tokenizer."""
    fields: dict[str, Any] = {"split_format": SPLIT_FORMAT}
    if config.split.by != "confidence":
        used = {"random": ("seed",), "length": (), "group": ("confident",)}[config.split.by]
        return {**fields, "split": {"by": config.split.by, **{key: getattr(config.split, key) for key in used}}}
    if config.splits_after_first_epoch:
        return {**fields, "confidence": FIRST_EPOCH, "window": config.confidence.window or WINDOW}
    if confidence is None:
        source: Any = {"sha256": content_hash(Path(str(config.confidence.path)), hash_cache(config))}
    else:
        source = confidence.fingerprint
    return {**fields, "confidence": source, "use": config.confidence.use}


def _recipe_fields(config: Config) -> dict[str, Any]:
    """Return the optimization and the terms of the loss. What is not used is left out."""
    recipe, scheduler = to_dict(config.recipe), config.scheduler
    fields = {
        "global_batch_size": recipe["global_batch_size"],
        **to_dict(config.optimizer),
        "warmup_ratio": scheduler.warmup_ratio,
        "length_window": recipe["length_window"],
        "schedule": SCHEDULE,
        **used_terms(recipe),
        **config.trainer.limits,
    }
    if scheduler.shape != "cosine":
        fields["scheduler"] = scheduler.shape
    if scheduler.min_lr_ratio != 0:
        fields["min_lr_ratio"] = scheduler.min_lr_ratio
    if recipe["neftune_alpha"] is not None:
        fields["neftune_alpha"] = recipe["neftune_alpha"]
    if recipe["comparison"] is not None:
        fields["comparison"] = recipe["comparison"]
    if recipe["comparison"] == "matched_compute":  # what its length depends on
        epochs = config.reference.epochs or config.data.epochs
        fields["matched"] = {"num_checkpoints": config.reference.num_checkpoints, "reference_epochs": epochs}
    return fields


def data_fields(config: Config) -> dict[str, Any]:
    """Return what the examples, their tokens and their selection depend on."""
    data, cache = config.data, hash_cache(config)
    template = template_source(data.template)
    fields = {
        "reading": READING,
        **_source_fields(data, cache),
        "template": "tokenizer" if template is None else _hash(template),
        "encoding": ENCODING,
        "max_seq_len": data.max_seq_len,
        "overlong": data.overlong,
        "val_fraction": data.val_fraction,
    }
    if data.val_seed is not None:
        fields["val_seed"] = data.val_seed
    select = data.select
    if select is not None:
        fields["select"] = {
            "by": select.by,
            "k": select.k,
            "at_least": select.at_least,
            "seed": select.seed,
            "sha256": select.path and content_hash(Path(select.path), cache),
            # tokenizer and chat template, which decide the tokens of a model
            "tokenizer": {"init": {"vocab_size": config.model.init.vocab_size}}
            if config.model.init is not None
            else _folder_fields(config.model, cache, TOKENIZER_FILES),
        }
        if select.block:
            fields["select"]["block"] = select.block
    return fields


def examples_fields(config: Config) -> dict[str, Any]:
    """Return what the text of the examples depends on."""
    return {"kind": "examples", "reading": READING, **_source_fields(config.data, hash_cache(config))}


def _source_fields(data: Data, cache: Path) -> dict[str, Any]:
    if data.mixture is not None:
        path = None if data.path is None else Path(data.path)
        rows: dict[str, Any] = {
            name: {"cap": source.cap, **_rows_of(source, path and local_copy(path, name), cache)}
            for name, source in data.mixture.taken.items()
        }
    elif data.demo is not None:
        demo = {key: value for key, value in to_dict(data.demo).items() if value is not None}
        rows = {"demo": demo, "sha256": _hash(demo_rows(**demo))}
    else:
        rows = _rows_of(data, data.path, cache)
    replacement = data.replacement
    return {
        "source": rows,
        "schema": data.schema,
        "columns": {name: column for name, column in to_dict(data.columns).items() if column is not None},
        "groups": data.groups,
        "limit": data.limit,
        "max_row_mib": data.max_row_mib,
        "replacement": replacement
        and {"fraction": replacement.fraction, **_rows_of(replacement, replacement.path, cache)},
    }


def _rows_of(source: Data | Replacement | Source, path: str | Path | None, cache: Path) -> dict[str, Any]:
    """Return what identifies the rows of a file or folder, or of a data set of the hub."""
    if path is None:
        return {"hub_id": source.hub_id, "revision": source.revision, "split": source.split}
    files = data_files(Path(path), split=source.split)
    hashes = [content_hash(file, cache) for file in files]
    if not Path(path).is_dir():
        return {"sha256": hashes[0], "read_as": kind_of_file(files[0])}
    return {"sha256": _hash([[str(f.relative_to(path)), h] for f, h in zip(files, hashes, strict=True)])}


def _model_fields(model: Model, cache: Path) -> dict[str, Any]:
    built_here = model.init is not None
    weights = {"init": to_dict(model.init)} if built_here else _folder_fields(model, cache, MODEL_FILES)
    fields = {**weights, "dtype": model.dtype, "pad_token": model.pad_token}
    if model.lora is not None:  # lr_factor is in optimizer.lr
        lora = {key: value for key, value in to_dict(model.lora).items() if key != "lr_factor"}
        names = lora["target_modules"]
        fields["lora"] = {**lora, "target_modules": names if isinstance(names, str) else sorted(set(names))}
    if model.quantization is not None:
        fields["quantization"] = model.quantization
    return fields


def _folder_fields(model: Model | Base, cache: Path, patterns: tuple[str, ...]) -> dict[str, Any]:
    """Return what identifies the files of a model in a folder or at the hub."""
    if looks_local(str(model.path)):
        return {"sha256": content_hash(Path(str(model.path)), cache, patterns)}
    return {"hub_id": model.path, "revision": model.revision}


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
