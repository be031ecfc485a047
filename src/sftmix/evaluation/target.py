"""Find the model to evaluate: a finished run, a Hugging Face folder, or a model of the hub."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import Found, find_artifacts, folder_of, tidy
from sftmix.artifacts.hashes import content_hash, short_name
from sftmix.artifacts.manifest import MANIFEST, damaged, read_json, verify, verify_inside
from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.outputs import read_outputs
from sftmix.evaluation.results import plain_name
from sftmix.hub import check_on_hub, looks_local, newest_commit
from sftmix.models.folder_check import check_folder
from sftmix.stages.fingerprint import MODEL_FILES

EVALUATED = "evaluated"
SHOWN = 5  # runs that a message names


@dataclass(frozen=True)
class Target:
    """The model to evaluate, and the folder of its results."""

    name: str
    model: str  # Folder or hub id
    revision: str | None  # Commit of the hub id
    identity: str  # Hash of the weights, or the commit
    folder: Path  # Folder that holds the folder `evaluation` of the results: the run, or a folder under the root
    run: Path | None  # The finished run of the model, or None
    config: dict[str, Any] | None  # The config of that run

    @property
    def is_embedded(self) -> bool:
        """Whether the model was tuned on the embedded data only."""
        return self.config is not None and self.config["data"]["demo"] is not None


def find_target(run: str | None, revision: str | None, root: Path, key: str = "run") -> Target:
    """Return the model that a setting names; None is the newest run under the root.

    Args:
        run: Folder of a run or its name under the root, folder of its model, any Hugging Face folder, or a hub id.

    Raises:
        InputError: If there is no such model, or it cannot be read.
    """
    if run is None:
        runs = _runs(root)
        if not runs:
            raise InputError(f"{key} has no value and there is no finished run in {root}: `python train.py` makes one")
        newest = max(runs, key=lambda run: (run.completed, run.folder.name)).folder
        print(f"run         {newest}, the newest", flush=True)
        return _of_run(newest.resolve(), root, key)
    named = Path(run)
    if not looks_local(run) and not (root / run).is_dir():
        if named.parts[0] in (root.name, "runs") or named.parent.is_dir():  # a folder's name, not a hub's owner
            raise InputError(f"{key}={run}: no such folder{_there(root)}")
        return _of_hub(run, revision, root, key)
    if revision is not None:
        raise InputError(f"revision={revision}: {key}={run} is a folder, only models of the hub have revisions")
    if not named.is_dir() and not (root / run).is_dir():
        raise InputError(f"{key}={run}: no such folder, here or in {root}{_there(root)}")
    folder = folder_of(run, root, key)
    for place in (folder, folder.parent):
        if (folder == place or folder.name == "model") and _is_run(place):
            return _of_run(place, root, key)
    check_folder(str(folder), key)
    verify_inside(folder)
    identity = content_hash(folder, root / ".hashes.json", MODEL_FILES)
    results = root / EVALUATED / short_name(f"{folder.name}-{identity[:8]}")
    return Target(folder.name, str(folder), None, identity, results, None, None)


def author_of(outputs: Path, root: Path) -> Target:
    """Return the model that wrote a file of answers in AlpacaEval's form. The model itself is not needed."""
    name = read_outputs(outputs)[0].generator or outputs.stem
    identity = hashlib.sha256(outputs.read_bytes()).hexdigest()
    results = short_name(f"{plain_name(name)}-{identity[:8]}")
    return Target(name, str(outputs), None, identity, root / EVALUATED / results, None, None)


def _is_run(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file() or not (folder / "model").is_dir():
        return False
    fields = read_json(folder / MANIFEST).get("fields", {})
    return isinstance(fields, dict) and fields.get("kind") == "run"


def _runs(root: Path) -> list[Found]:
    """Return the complete runs of a root that can be evaluated."""
    return [run for run in find_artifacts(root, "run")[0] if (run.folder / "model").is_dir()]


def _there(root: Path) -> str:
    """Return the names of finished runs of a root, as the end of a message."""
    names = [run.folder.name for run in _runs(root)]
    more = ", ..." if len(names) > SHOWN else ""
    return f"; finished runs in {root}: {', '.join(names[:SHOWN])}{more}" if names else ""


def _of_run(folder: Path, root: Path, key: str) -> Target:
    tidy(folder)
    check_folder(str(folder / "model"), key)
    verify(folder, "model")
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise damaged(folder / "run.json", "has no configuration")
    identity = content_hash(folder / "model", root / ".hashes.json", MODEL_FILES)
    return Target(folder.name, str(folder / "model"), None, identity, folder, folder, record["config"])


def _of_hub(hub_id: str, revision: str | None, root: Path, key: str) -> Target:
    check_on_hub("model", hub_id, revision, f"{key}=FOLDER")
    commit = revision or newest_commit("model", hub_id, f"{key}=FOLDER")
    name = hub_id.split("/")[-1]
    return Target(name, hub_id, commit, commit, root / EVALUATED / f"{name}-{commit[:8]}", None, None)
