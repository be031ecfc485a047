"""Check the inputs of a config: local files and folders, and data sets and models of the hub at pinned commits."""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.config.data import Data, Replacement, Source
from sftmix.config.model import Model
from sftmix.config.schema import Config
from sftmix.data.arrow_rows import LOCAL_COPY as DATA_COPY
from sftmix.data.files import check_file, data_files, local_copy
from sftmix.data.templates import template_source
from sftmix.errors import InputError
from sftmix.hub import check_on_hub, looks_local, newest_commit
from sftmix.models.folder_check import check_checkpoint, check_folder
from sftmix.models.loading import LOCAL_COPY as MODEL_COPY
from sftmix.models.lora import Base, base_of, base_quantization, is_adapter

COMMITS = ".revisions.json"  # file under `root`
Check = Callable[[], object]  # raises an InputError if what it checks is wrong


def check_inputs(config: Config) -> None:
    """Refuse files and folders that cannot be read, and a `root` that cannot be written, before heavy imports."""
    for fault in faults_of(input_checks(config)):
        raise fault
    if config.mode != "list":  # mode=list writes nothing, so the root may be read-only
        check_output("root", config.root)


def faults_of(checks: Iterable[Check]) -> Iterator[InputError]:
    """Yield the error of each check that fails, each text once."""
    found: set[str] = set()
    for check in checks:
        try:
            check()
        except InputError as error:
            if str(error) not in found:
                found.add(str(error))
                yield error


def input_checks(config: Config) -> Iterator[Check]:
    """Yield a check for each file and folder that a config names. No check needs another one."""
    yield from _data_checks(config.data)
    yield partial(template_source, config.data.template)
    for key, model in models_of(config).items():
        if model.path is not None and looks_local(model.path):
            yield partial(check_folder, model.path, f"{key}.path")
    for folder in config.confidence.checkpoints or []:
        yield partial(check_checkpoint, folder, "confidence.checkpoints")
    yield partial(_check_quantization, config)
    yield partial(_check_scores, config.confidence.path)


def check_output(key: str, folder: str) -> None:
    """Refuse a folder that cannot be made or written. It is made if it is missing."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 2**20)
    except OSError as error:
        why = f"cannot be written ({error.strerror}), expected a folder on a writable disk with free space"
        raise InputError(f"{key}={folder}: {why}") from None


def _check_scores(path: str | None) -> None:
    if path is not None and not Path(path).is_file():
        raise InputError(f"confidence.path={path}: no such file")


def _check_quantization(config: Config) -> None:
    setting = quantized_by(config)
    if setting is not None and config.mode not in ("list", "plan") and find_spec("bitsandbytes") is None:
        raise InputError(f"{setting}: the package bitsandbytes is not installed (pip install 'sftmix[quantization]')")


def models_of(config: Config) -> dict[str, Model]:
    """Return the models that are tuned, each once, by their keys."""
    has_two = config.needs_confidence and config.reference.model != config.model
    return {"model": config.model} | ({"reference.model": config.reference.model} if has_two else {})


def quantized_by(config: Config) -> str | None:
    """Return the setting by which a model that is tuned or that scores is quantized, or None if none is."""
    for key, model in models_of(config).items():
        if model.quantization is not None:
            return f"{key}.quantization={model.quantization}"
    for folder in _adapters(config):
        if base_quantization(folder, "confidence.checkpoints") is not None:
            return f"confidence.checkpoints={folder}, an adapter on quantized weights"
    return None


def check_data_files(data: Data) -> None:
    """Refuse data files that are missing, and folders without the split that is set or with several splits."""
    for fault in faults_of(_data_checks(data)):
        raise fault


def _data_checks(data: Data) -> Iterator[Check]:
    if data.path is not None and data.mixture is not None:
        if Path(data.path).is_dir():
            for name, source in data.mixture.taken.items():
                path, key = local_copy(Path(data.path), name), f"data.mixture.sources.{name}.path"
                yield partial(data_files, path, key, source.split)
        else:
            yield partial(_refuse_no_folder, data)
    elif data.path is not None:
        yield partial(data_files, Path(data.path), split=data.split)
    if data.replacement is not None and data.replacement.path is not None:
        yield partial(data_files, Path(data.replacement.path), "data.replacement.path", data.replacement.split)
    if data.select is not None and data.select.path is not None:
        yield partial(check_file, Path(data.select.path), "data.select.path")
    for file in data.val_files.values():
        yield partial(check_file, Path(file), "data.val_path")


def _refuse_no_folder(data: Data) -> None:
    raise InputError(f"data.path={data.path}: data {data.title} has several sources, expected a folder of them")


def check_hub(config: Config, reads_reference: bool, *, models: bool = True) -> None:
    """Refuse models and data sets that the hub does not provide, before anything heavy is imported.

    Args:
        models: Whether to check the models too.
    """
    for fault in faults_of(hub_checks(config, reads_reference, models=models)):
        raise fault


def hub_checks(config: Config, reads_reference: bool, *, models: bool = True) -> Iterator[Check]:
    """Yield a check for each model and data set of the hub. The arguments are those of `check_hub`."""
    tuned = [config.model, *([config.reference.model] if reads_reference else [])]
    named = [(model.path, model.revision) for model in tuned]
    named += [checkpoint_base(config, folder) for folder in _adapters(config)]
    for hub_id, revision in dict.fromkeys(named) if models else ():
        if hub_id is not None and not looks_local(hub_id):
            yield partial(check_on_hub, "model", hub_id, revision, MODEL_COPY)
    for source in hub_sources(config.data):
        yield partial(check_on_hub, "dataset", str(source.hub_id), source.revision, DATA_COPY)


def hub_sources(data: Data) -> list[Data | Replacement | Source]:
    """Return the parts of a data set that are read from the hub."""
    sources: list[Data | Replacement | Source] = []
    if data.mixture is not None and data.path is None:
        sources += data.mixture.taken.values()
    elif data.path is None and data.hub_id is not None:
        sources.append(data)
    if data.replacement is not None and data.replacement.path is None:
        sources.append(data.replacement)
    return sources


def pin_revisions(config: Config) -> None:
    """Give each data set of the hub that names no commit the newest one. The commit is kept under `root`.

    The base models of LoRA checkpoints that name no commit are pinned too (`checkpoint_base`).
    """
    for source in hub_sources(config.data):
        if source.revision is None:
            source.revision = pinned_commit(Path(config.root), str(source.hub_id), DATA_COPY)
    for folder in _adapters(config):
        base = base_of(folder, "confidence.checkpoints")
        if not looks_local(base.path) and not _is_commit(base.revision):
            pinned_commit(Path(config.root), base.path, f"base_model_name_or_path in {folder}", kind="model")


def pin_known_revisions(config: Config) -> list[str]:
    """Pin the data sets of the hub whose commit is kept under `root`. Return the hub ids of all others.

    The hub is not asked, and nothing is written. No artifact under `root` is of a commit that is not known.
    """
    known, unknown = _known_commits(Path(config.root) / COMMITS), list[str]()
    for source in hub_sources(config.data):
        if source.revision is None:
            source.revision = known.get(str(source.hub_id))
            unknown += [str(source.hub_id)] if source.revision is None else []
    return unknown


def pinned_commit(root: Path, hub_id: str, local_copy: str, *, kind: str = "dataset") -> str:
    """Return the commit of a data set or model of the hub that was the newest when the hub was first asked.

    Args:
        root: Folder that keeps the commit.
        local_copy: How to give a local copy instead, for the message.
        kind: dataset or model.
    """
    file, title, name = root / COMMITS, "data", hub_id
    if kind == "model":
        title, name = "confidence", f"model {hub_id}"
    known = _known_commits(file)
    if name not in known:
        known[name] = newest_commit(kind, hub_id, local_copy)
        root.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
        print(f"{title:<12}{hub_id}: its newest commit is {known[name]}, kept in {file}", flush=True)
    return known[name]


def checkpoint_base(config: Config, folder: Path) -> Base:
    """Return the base of a LoRA checkpoint of `confidence.checkpoints`: a folder, or a hub id at a commit."""
    base = base_of(folder, "confidence.checkpoints")
    if looks_local(base.path):
        return Base(str(Path(base.path).expanduser()), None)
    if _is_commit(base.revision):
        return base
    return Base(base.path, _known_commits(Path(config.root) / COMMITS)[f"model {base.path}"])


def _known_commits(file: Path) -> dict[str, str]:
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
