"""Which artifacts a configuration means: their names, and everything that their content depends on."""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import Artifact
from sftmix.artifacts.files import write_json
from sftmix.artifacts.hashes import content_hash
from sftmix.artifacts.manifest import read_json
from sftmix.config.schema import Config, Data, Model, Replacement, Source, to_dict
from sftmix.data.arrow_rows import LOCAL_COPY as DATA_COPY
from sftmix.data.demo import demo_rows
from sftmix.data.encoding import ENCODING
from sftmix.data.files import check_file, data_files, kind_of_file, local_copy
from sftmix.data.templates import template_source
from sftmix.distributed.device import Device
from sftmix.errors import InputError
from sftmix.hub import check_on_hub, looks_local, newest_commit
from sftmix.models.loading import LOCAL_COPY as MODEL_COPY
from sftmix.models.loading import check_checkpoint, check_folder
from sftmix.models.lora import Base, base_of, is_adapter
from sftmix.stages.device_choice import choose_device

TOKENIZER_FILES = ("*token*.json", "vocab.json", "*.model", "*.txt", "*.jinja")
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
SCHEDULE = 2  # increased whenever the same settings give other learning rates; 2: warm-up counted from step 1
READING = 4  # raised whenever the same source gives other examples, or its census is written otherwise


@dataclass(frozen=True)
class Plan:
    """The artifacts of a run.

    Attributes:
        reference: the NTP run whose checkpoints score, or None where nothing is tuned for scoring.
        confidence: the figures of the scoring pass, or None where none is needed or a file is given.
        target: the tuned model.
        baseline: the NTP run at the target's own settings: it is shown beside the target where it is there.
    """

    reference: Artifact | None
    confidence: Artifact | None
    target: Artifact
    baseline: Artifact

    @property
    def tunes_reference(self) -> bool:
        """Whether a reference has to be tuned, or at least scored."""
        return self.reference is not None and self.confidence is not None and not self.confidence.is_complete


def check_inputs(config: Config) -> None:
    """Refuse files and folders that nothing can be read from, before anything heavy is imported.

    Raises:
        InputError: a data file, model folder, checkpoint or confidence file that is missing or incomplete.
    """
    check_data_files(config.data)
    template_source(config.data.template)
    models = {"model": config.model} | ({"reference.model": config.reference.model} if config.needs_confidence else {})
    for key, model in models.items():
        if model.path is not None and looks_local(model.path):
            check_folder(model.path, f"{key}.path")
    for folder in config.confidence.checkpoints or []:
        check_checkpoint(folder, "confidence.checkpoints")
    if config.confidence.path is not None and not Path(config.confidence.path).is_file():
        raise InputError(f"confidence.path={config.confidence.path}: no such file")
    root = Path(config.root)
    if config.mode == "list":
        return  # nothing is written, so the root may be read-only
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise InputError(f"root={config.root}: cannot be written ({error.strerror})") from None


def check_data_files(data: Data) -> None:
    """Refuse data files that are missing, and folders without the split that is set or with several splits.

    Raises:
        InputError: One of them.
    """
    if data.path is not None and data.mixture is not None:
        if not Path(data.path).is_dir():
            raise InputError(f"data.path={data.path}: data {data.name} has several sources, expected a folder of them")
        for name, source in data.mixture.taken.items():
            data_files(local_copy(Path(data.path), name), f"data.mixture.sources.{name}.path", source.split)
    elif data.path is not None:
        data_files(Path(data.path), split=data.split)
    if data.replacement is not None and data.replacement.path is not None:
        data_files(Path(data.replacement.path), "data.replacement.path", data.replacement.split)
    if data.select is not None and data.select.path is not None:
        check_file(Path(data.select.path), "data.select.path")


def reference_lr(config: Config) -> float:
    """Return the peak learning rate of the reference: `optimizer.lr`, or that of its own model if the models differ."""
    same = config.reference.model == config.model
    return config.optimizer.lr if same else config.reference.model.peak_lr


def check_hub(config: Config, plan: Plan) -> None:
    """Refuse models and data sets that the hub does not give, before anything heavy is imported.

    Raises:
        InputError: one of them.
    """
    models = [config.model, *([config.reference.model] if plan.tunes_reference else [])]
    named = [(m.path, m.revision) for m in models]
    named += [checkpoint_base(config, folder) for folder in _adapters(config)]
    for hub_id, revision in dict.fromkeys(named):
        if hub_id is not None and not looks_local(hub_id):
            check_on_hub("model", hub_id, revision, MODEL_COPY)
    for part in hub_parts(config.data):
        check_on_hub("dataset", str(part.hub_id), part.revision, DATA_COPY)


def hub_parts(data: Data) -> list[Data | Replacement | Source]:
    """What of a data set is read from the hub."""
    parts: list[Data | Replacement | Source] = []
    if data.mixture is not None and data.path is None:
        parts += data.mixture.taken.values()
    elif data.path is None and data.hub_id is not None:
        parts.append(data)
    if data.replacement is not None and data.replacement.path is None:
        parts.append(data.replacement)
    return parts


def pin_revisions(config: Config) -> None:
    """Give each data set of the hub that names no commit the one that is newest, and remember it under `root`.

    Raises:
        InputError: the hub cannot be asked.
    """
    for part in hub_parts(config.data):
        if part.revision is None:
            part.revision = pinned_commit(Path(config.root), str(part.hub_id), DATA_COPY)
    file = Path(config.root) / ".revisions.json"
    known = _known_commits(file)
    for folder in _adapters(config):
        base = base_of(folder, "confidence.checkpoints")
        name = f"model {base.path}"
        if not looks_local(base.path) and not _is_commit(base.revision) and name not in known:
            known[name] = newest_commit("model", base.path, f"base_model_name_or_path in {folder}")
            write_json(file, known)
            print(f"confidence  {base.path}: its newest commit is {known[name]}, kept in {file}", flush=True)


def pinned_commit(root: Path, hub_id: str, local_copy: str) -> str:
    """The commit of a data set of the hub that was newest when it was first asked for; it is remembered.

    Args:
        root: folder that remembers.
        hub_id: owner/name.
        local_copy: how to give a local copy instead, for the message.

    Raises:
        InputError: the hub cannot be asked.
    """
    file = root / ".revisions.json"
    known = _known_commits(file)
    if hub_id not in known:
        known[hub_id] = newest_commit("dataset", hub_id, local_copy)
        root.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
        print(f"data        {hub_id}: its newest commit is {known[hub_id]}, kept in {file}", flush=True)
    return known[hub_id]


def checkpoint_base(config: Config, folder: Path) -> Base:
    """The base of an adapter among `confidence.checkpoints`: its folder, or its hub id at a commit."""
    base = base_of(folder, "confidence.checkpoints")
    if looks_local(base.path):
        return Base(str(Path(base.path).expanduser()), None)
    if _is_commit(base.revision):
        return base
    return Base(base.path, _known_commits(Path(config.root) / ".revisions.json")[f"model {base.path}"])


def _known_commits(file: Path) -> dict[str, str]:
    """Return the commits that were pinned under a root, by hub id.

    Raises:
        InputError: If the file is damaged.
    """
    try:
        known = read_json(file) if file.is_file() else {}
    except InputError as error:
        raise InputError(f"{error}; delete it, and the newest commits are pinned again") from None
    if not isinstance(known, dict) or not all(isinstance(value, str) for value in known.values()):
        raise InputError(f"{file}: is damaged, expected commits by hub id; delete it, and they are pinned again")
    return known


def _adapters(config: Config) -> list[Path]:
    return [Path(folder) for folder in config.confidence.checkpoints or [] if is_adapter(Path(folder))]


def _is_commit(revision: str | None) -> bool:
    return re.fullmatch("[0-9a-f]{40}", str(revision)) is not None


def plan_run(config: Config) -> tuple[Device, Plan]:
    """The devices and the artifacts of a configuration whose files are there and whose revisions are pinned.

    Raises:
        InputError: anything that was given is wrong.
    """
    check_inputs(config)
    pin_revisions(config)
    device = choose_device(config.trainer)
    return device, make_plan(config, device)


def make_plan(config: Config, device: Device) -> Plan:
    """The artifacts that a configuration means on a device."""
    root = Path(config.root)
    cache = root / ".hashes.json"
    data = _data_fields(config, cache)

    def ntp_run(model: Model, lr: float, seed: int) -> Artifact:
        fields = {
            "kind": "run",
            "data": {**data, "epochs": config.data.epochs},
            "model": _model_fields(model, cache),
            "recipe": {**_optimizer_fields(config), "lr": lr, "ntp": {"weight": 1.0, "on": "all"}, "mixup": None},
            "num_checkpoints": config.reference.num_checkpoints,
            "seed": seed,
            "precision": device.precision,
        }
        return Artifact(root, f"ntp-{_tuned_name(model)}-{data_name(config.data)}-seed{seed}", fields)

    baseline = ntp_run(config.model, config.optimizer.lr, config.seed)
    if not config.needs_split:
        fields = {**baseline.fields, "recipe": {**_optimizer_fields(config), **_terms(config)}}
        if not config.recipe.is_plain_ntp:
            del fields["num_checkpoints"]  # its checkpoints never score
            return Plan(None, None, Artifact(root, _title(config), fields), baseline)
        if config.recipe.ntp.weight != 1.0:
            return Plan(None, None, Artifact(root, baseline.title, fields), baseline)
        return Plan(None, None, baseline, baseline)

    reference, confidence = None, None
    if config.split.by != "confidence":
        halves: dict[str, Any] = {"split": _split_fields(config)}
    elif config.confidence.path is not None:
        halves = {"confidence": {"sha256": content_hash(Path(config.confidence.path), cache)}}
    else:
        if config.confidence.checkpoints is not None:
            folders = [Path(folder) for folder in config.confidence.checkpoints]
            checkpoints: Any = [_checkpoint_fields(config, folder, cache) for folder in folders]
            title = f"confidence-{len(folders)}checkpoints-{data_name(config.data)}"
        else:
            reference = ntp_run(config.reference.model, reference_lr(config), config.reference.seed)
            checkpoints = reference.fingerprint
            name = _tuned_name(config.reference.model)
            title = f"confidence-{name}-{data_name(config.data)}-seed{config.reference.seed}"
        fields = {"kind": "confidence", "data": data, "checkpoints": checkpoints, "precision": device.precision}
        confidence = Artifact(root, title, fields)
        halves = {"confidence": confidence.fingerprint}
    if config.split.by == "confidence":
        halves["use"] = config.confidence.use
    fields = {
        "kind": "run",
        "data": {**data, "epochs": config.data.epochs},
        "model": _model_fields(config.model, cache),
        "recipe": {**_optimizer_fields(config), **_terms(config)},
        **halves,
        "seed": config.seed,
        "precision": device.precision,
    }
    return Plan(reference, confidence, Artifact(root, _title(config), fields), baseline)


def _title(config: Config) -> str:
    """What people call a target."""
    recipe = config.recipe
    mu = "" if recipe.mixup is None else f"-mu{recipe.mixup.mu:g}"
    noise = "" if recipe.neftune_alpha is None else f"-noise{recipe.neftune_alpha:g}"
    prompt = "" if recipe.ntp.prompt_weight == 0 else f"-prompt{recipe.ntp.prompt_weight:g}"
    split = "" if config.split.by == "confidence" else f"-{config.split.by}"
    named = f"{recipe.name}{split}-{_tuned_name(config.model)}-{data_name(config.data)}"
    return f"{named}{mu}{noise}{prompt}-seed{config.seed}"


def _optimizer_fields(config: Config) -> dict[str, Any]:
    scheduler = config.scheduler
    fields = {
        "global_batch_size": config.recipe.global_batch_size,
        **to_dict(config.optimizer),
        "warmup_ratio": scheduler.warmup_ratio,
        "length_window": config.recipe.length_window,
        "schedule": SCHEDULE,
    }
    if scheduler.name != "cosine":
        fields["scheduler"] = scheduler.name
    if scheduler.min_lr_ratio != 0:
        fields["min_lr_ratio"] = scheduler.min_lr_ratio
    return fields


def _terms(config: Config) -> dict[str, Any]:
    """The terms of the loss; those of other recipes count where they are in use."""
    recipe = to_dict(config.recipe)
    mixup = recipe["mixup"] and {k: v for k, v in recipe["mixup"].items() if (k, v) != ("pairing", "random")}
    terms = {"ntp": recipe["ntp"], "mixup": mixup}
    if config.recipe.ntp.prompt_weight == 0:
        del terms["ntp"]["prompt_weight"]
    if config.recipe.neftune_alpha is not None:
        terms["neftune_alpha"] = config.recipe.neftune_alpha
    return terms


def _split_fields(config: Config) -> dict[str, Any]:
    """What the halves depend on, beside the data and the tokenizer, where they are not by confidence."""
    read = {"random": ("seed",), "length": (), "group": ("confident",)}[config.split.by]
    return {"by": config.split.by, **{key: getattr(config.split, key) for key in read}}


def examples_artifact(config: Config) -> Artifact:
    """The examples of a data set, whatever the model: text, not tokens."""
    root = Path(config.root)
    fields = {"kind": "examples", "reading": READING, **_source_fields(config.data, root / ".hashes.json")}
    return Artifact(root / "data", f"examples-{data_name(config.data)}", fields)


def _source_fields(data: Data, cache: Path) -> dict[str, Any]:
    """Everything that the examples of a data set depend on."""
    if data.mixture is not None:
        path = None if data.path is None else Path(data.path)
        source: dict[str, Any] = {
            name: {"cap": s.cap, **_rows_of(path and local_copy(path, name), s.hub_id, s.revision, s.split, cache)}
            for name, s in data.mixture.taken.items()
        }
    elif data.demo is not None:
        demo = {key: value for key, value in to_dict(data.demo).items() if value is not None}
        source = {"demo": demo, "sha256": _hash(demo_rows(**demo))}
    else:
        source = _rows_of(data.path, data.hub_id, data.revision, data.split, cache)
    replacement = data.replacement
    return {
        "source": source,
        "schema": data.schema,
        "columns": {name: column for name, column in to_dict(data.columns).items() if column is not None},
        "groups": data.groups,
        "limit": data.limit,
        "max_row_mib": data.max_row_mib,
        "replacement": replacement
        and {
            "fraction": replacement.fraction,
            **_rows_of(replacement.path, replacement.hub_id, replacement.revision, replacement.split, cache),
        },
    }


def _rows_of(
    path: str | Path | None, hub_id: str | None, revision: str | None, split: str | None, cache: Path
) -> dict[str, Any]:
    """What stands for the rows of a file or folder, or of a data set of the hub."""
    if path is None:
        return {"hub_id": hub_id, "revision": revision, "split": split}
    files = data_files(Path(path), split=split)
    hashes = [content_hash(file, cache) for file in files]
    if not Path(path).is_dir():
        return {"sha256": hashes[0], "read_as": kind_of_file(files[0])}
    return {"sha256": _hash([[str(f.relative_to(path)), h] for f, h in zip(files, hashes, strict=True)])}


def _data_fields(config: Config, cache: Path) -> dict[str, Any]:
    """Everything that what is learnt depends on, of the data."""
    data = config.data
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
    select = data.select
    if select is not None:
        fields["select"] = {
            "by": select.by,
            "k": select.k,
            "at_least": select.at_least,
            "seed": select.seed,
            "sha256": select.path and content_hash(Path(select.path), cache),
            "tokenizer": _tokenizer_fields(config.model, cache),
        }
    return fields


def _tokenizer_fields(model: Model, cache: Path) -> dict[str, Any]:
    """What a model's tokens depend on, its own chat template too."""
    if model.init is not None:
        return {"init": {"vocab_size": model.init.vocab_size}}
    if looks_local(str(model.path)):
        return {"sha256": content_hash(Path(str(model.path)), cache, TOKENIZER_FILES)}
    return {"hub_id": model.path, "revision": model.revision}


def _model_fields(model: Model, cache: Path) -> Mapping[str, Any]:
    fields = {**_weights(model, cache), "dtype": model.dtype, "pad_token": model.pad_token}
    if model.lora is not None:  # lr_factor is in the recipe's lr
        lora = {key: value for key, value in to_dict(model.lora).items() if key != "lr_factor"}
        names = lora["target_modules"]
        fields["lora"] = {**lora, "target_modules": names if isinstance(names, str) else sorted(set(names))}
    return fields


def _weights(model: Model | Base, cache: Path) -> dict[str, Any]:
    """What stands for the weights that a model starts from."""
    if isinstance(model, Model) and model.init is not None:
        return {"init": to_dict(model.init)}
    if looks_local(str(model.path)):
        return {"sha256": content_hash(Path(str(model.path)), cache, MODEL_FILES)}
    return {"hub_id": model.path, "revision": model.revision}


def _checkpoint_fields(config: Config, folder: Path, cache: Path) -> Any:
    """What stands for a checkpoint of another trainer; an adapter counts with its base."""
    sha256 = content_hash(folder, cache, MODEL_FILES)
    if not is_adapter(folder):
        return sha256
    return {"sha256": sha256, "base": _weights(checkpoint_base(config, folder), cache)}


def base_artifact(root: str, model: Model) -> Artifact:
    """The embedded model before tuning as a folder, for adapters to name as their base."""
    fields = {"kind": "base", "init": to_dict(model.init), "pad_token": model.pad_token}
    return Artifact(Path(root), f"base-{model.name}", fields)


def data_name(data: Data) -> str:
    """Return the name of a data set for folders: its `name`, or for `data=own` that of its file."""
    is_named_by_file = data.path is not None and data.name == "own"
    return Path(re.sub(r"(?i)\.gz$", "", str(data.path))).stem if is_named_by_file else data.name


def model_name(model: Model) -> str:
    """What people call a model: its choice, or the name of its folder."""
    return Path(str(model.path)).resolve().name if model.name == "local" else model.name


def _tuned_name(model: Model) -> str:
    """What a run of it is called: LoRA is said."""
    return model_name(model) if model.lora is None else f"{model_name(model)}-lora"


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
