"""What is evaluated: a finished run, a Hugging Face folder or a model of the hub."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import Found, find_artifacts, folder_of, tidy
from sftmix.artifacts.hashes import content_hash, short_name
from sftmix.artifacts.manifest import MANIFEST, damaged, read_json, verify, verify_inside
from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.outputs import read_outputs
from sftmix.hub import check_on_hub, looks_local, newest_commit
from sftmix.models.folder_check import check_folder
from sftmix.stages.fingerprint import MODEL_FILES

EVALUATED = "evaluated"
SHOWN = 5  # runs that a message names


@dataclass(frozen=True)
class Target:
    """A model that answers, and where what is found of it goes.

    Attributes:
        name: what people call it.
        model: its folder, or its hub id.
        revision: commit of the hub id.
        identity: tells its weights from any others: their hash, or the commit.
        folder: has the folder `evaluation` with the results: the run, or one of its own under the root.
        run: the finished run whose model it is, or None.
        config: what that run was configured by.
    """

    name: str
    model: str
    revision: str | None
    identity: str
    folder: Path
    run: Path | None
    config: dict[str, Any] | None

    @property
    def is_embedded(self) -> bool:
        """Whether it was tuned on the embedded data, and knows nothing else."""
        return self.config is not None and self.config["data"]["demo"] is not None


def find_target(run: str | None, revision: str | None, root: Path, key: str = "run") -> Target:
    """The model that a setting means; None is the newest run under the root.

    Args:
        run: a run's folder or its name under the root, the folder of its model, any Hugging Face folder, or a hub id.
        revision: commit of the hub id.
        root: the folder of runs.
        key: the setting, for messages.

    Raises:
        InputError: there is no such model, or it cannot be read.
    """
    if run is None:
        return _of_run(_newest(root, key), root, key)
    named = Path(run)
    if not looks_local(run) and not (root / run).is_dir():
        if (
            Path(run).parts[0] in (root.name, "runs") or Path(run).parent.is_dir()
        ):  # no hub's owner, but a folder's name
            raise InputError(f"{key}={run}: no such folder{_there(root)}")
        return _of_hub(run, revision, root, key)
    if revision is not None:
        raise InputError(f"revision={revision}: {key}={run} is a folder, revisions are of the hub's models")
    if not named.is_dir() and not (root / run).is_dir():
        raise InputError(f"{key}={run}: no such folder, nor one of that name in {root}{_there(root)}")
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
    """The model whose answers a file of AlpacaEval's form holds; it is not here itself.

    Raises:
        InputError: the file holds no answers.
    """
    name = read_outputs(outputs)[0].generator or outputs.stem
    identity = hashlib.sha256(outputs.read_bytes()).hexdigest()
    results = short_name(re.sub(r"[^A-Za-z0-9._-]+", "_", name) + f"-{identity[:8]}")
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
    """The finished runs of a root, for a message."""
    names = [run.folder.name for run in _runs(root)]
    return (
        f"; finished runs in {root}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}" if names else ""
    )


def _newest(root: Path, key: str) -> Path:
    runs = _runs(root)
    if not runs:
        raise InputError(f"{key} has no value and there is no finished run in {root}: `python train.py` makes one")
    newest = max(runs, key=lambda run: (run.completed, run.folder.name)).folder
    print(f"run         {newest}, the newest", flush=True)
    return newest.resolve()


def _of_run(folder: Path, root: Path, key: str) -> Target:
    tidy(folder)
    check_folder(str(folder / "model"), key)
    verify(folder, "model")
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise damaged(folder / "run.json", "holds no configuration")
    identity = content_hash(folder / "model", root / ".hashes.json", MODEL_FILES)
    return Target(folder.name, str(folder / "model"), None, identity, folder, folder, record["config"])


def _of_hub(hub_id: str, revision: str | None, root: Path, key: str) -> Target:
    check_on_hub("model", hub_id, revision, f"{key}=FOLDER")
    commit = revision or newest_commit("model", hub_id, f"{key}=FOLDER")
    name = hub_id.split("/")[-1]
    return Target(name, hub_id, commit, commit, root / EVALUATED / f"{name}-{commit[:8]}", None, None)
