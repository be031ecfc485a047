"""The command that repeats a run from its `run.json`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import damaged
from sftmix.config.load import from_hydra
from sftmix.config.schema import to_dict
from sftmix.provenance.git import git_state
from sftmix.provenance.runs import read_config, read_record
from sftmix.quoting import shell_command, train_script
from sftmix.reports.diff import MISSING, leaves_of, look_up
from sftmix.sweep import CONFIG_FILE, manifest

RERUNS = "reruns"


def rerun(run: Path) -> str:
    """Return the command that repeats a run, with comments on what has changed since.

    Keys that the recorded config lacks get default values, and the completed config is written to the folder `reruns`
    beside the run. Hydra must be initialized for this.

    Raises:
        InputError: If the run has no `run.json`, or the recorded config is not valid in this version.
    """
    file = run / "run.json"
    record, recorded = read_record(file), read_config(run)
    command = record.get("command")
    if not isinstance(command, list):
        raise damaged(file, "holds no command")
    lines = [f"# recorded command: {shell_command(['python', *map(str, command)])}"]
    completed = _completed(recorded, to_dict(from_hydra(hydra.compose("config"))))
    if new := [key for key in leaves_of(completed) if look_up(recorded, key) is MISSING]:
        file = run.parent / RERUNS / f"{run.name}.json"
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"command": command, "config": completed})
        lines.append(f"# not in the record, default values are used: {', '.join(new)}")
    config = manifest.read_config([str(file)])[1]
    lines += [f"# {line}" for line in _changes_since(record.get("git"))]
    if Path(config.root).expanduser().resolve() == run.resolve().parent:
        lines.append("# the run is in this root and is not trained again: add root=FOLDER to train it in another one")
    return "\n".join([shell_command(["python", train_script(), CONFIG_FILE, str(file)]), *lines])


def _completed(recorded: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    completed = dict(defaults)
    for key, value in recorded.items():
        default = defaults.get(key)
        are_nested = isinstance(value, Mapping) and isinstance(default, Mapping) and value
        completed[key] = _completed(value, default) if are_nested else value  # type: ignore[arg-type]
    return completed


def _changes_since(git: Any) -> Iterator[str]:
    now = git_state()
    if not isinstance(git, Mapping):
        yield "made outside a checkout: the source that made it is unknown"
        return
    if git.get("changed"):
        yield f"made at commit {git.get('commit')} with uncommitted changes"
    if now is None:
        yield f"made at commit {git.get('commit')}; this is not a checkout"
    elif now["commit"] != git.get("commit"):
        yield f"made at commit {git.get('commit')}; this checkout is at {now['commit']}"
    if now is not None and now["changed"]:
        yield "this checkout has uncommitted changes"
