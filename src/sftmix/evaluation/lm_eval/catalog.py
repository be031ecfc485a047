"""Find tasks of lm-eval by name, refuse what cannot be evaluated here, and load their data sets."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import requires
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind
from lm_eval.tasks._yaml_loader import load_yaml
from packaging.requirements import Requirement

from sftmix.errors import InputError, first_line
from sftmix.evaluation.lm_eval.model import silent
from sftmix.hub import check_on_hub, looks_local

KEY = "suite.tasks"
LOCAL_COPY = "suite.include_path=FOLDER, whose task reads it"
SHOWN = 3  # names that a message shows


class Leaf(NamedTuple):
    """A task before it is loaded."""

    name: str
    config: Mapping[str, Any]  # Of its YAML file; functions are names
    file: Path | None  # Its YAML file; None for a task that a group defines


class LoadedTasks(NamedTuple):
    """Tasks with their data sets, and the groups that contain them."""

    tasks: dict[str, Any]
    groups: dict[str, Any]


def load_tasks(names: Sequence[str], include_path: Path | None) -> LoadedTasks:
    """Return the tasks of some names with their data sets, which are fetched if needed.

    Raises:
        InputError: If a name is unknown, two names contain the same task, or a task cannot be evaluated here.
    """
    manager = _open_index(names, include_path)
    leaves = {name: list(_leaves(manager.task_index, name)) for name in names}
    _check_disjoint(leaves)
    every = [leaf for of_name in leaves.values() for leaf in of_name]
    for leaf in every:
        _check_kind(leaf)
    for leaf in every:
        _check_code(leaf)
    for leaf in {leaf.config.get("dataset_path"): leaf for leaf in every}.values():
        _check_data(leaf)
    loaded = LoadedTasks({}, {})
    for name in names:
        with refusing(f"task {name}", "its data set cannot be read"):
            found = manager.load([name])
        loaded.tasks.update(found["tasks"])
        loaded.groups.update(found.get("groups", {}))
    return loaded


@contextmanager
def refusing(where: str, what: str) -> Iterator[None]:
    """Run code of a task in silence, and raise its errors as an InputError of one line.

    Metrics of the package `evaluate` are refused: it fetches their code from the hub and runs it.
    """
    refused: list[str] = []
    try:
        with silent(), _without_metrics_of_hub(refused):
            yield
    except InputError:
        raise
    except Exception as error:  # a task is a program
        if not refused:
            raise _one_line(where, what, error) from error
    if refused:
        raise InputError(
            f"{where}: metric {refused[0]} is code that the package evaluate fetches from the hub; such code is not run"
        )


@contextmanager
def _without_metrics_of_hub(refused: list[str]) -> Iterator[None]:
    import evaluate

    def refuse(path: str, *_: Any, **__: Any) -> None:
        refused.append(path)
        raise RuntimeError(f"metric {path} is not run")

    load, evaluate.load = evaluate.load, refuse
    try:
        yield
    finally:
        evaluate.load = load


def _one_line(where: str, what: str, error: Exception) -> InputError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ImportError) and cause.name:
            return InputError(f"{where}: it needs the package {cause.name}, {_installation(cause.name)}")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ConnectionError):
        return InputError(f"{where}: {what} ({first_line(error)}); check the network, or give {LOCAL_COPY}")
    return InputError(f"{where}: {what} ({type(error).__name__}: {first_line(error)})")


def _installation(module: str) -> str:
    """Return the command that installs a module: an extra of lm-eval if one contains it."""
    wanted = module.partition(".")[0].lower().replace("_", "-")
    for line in requires("lm_eval") or []:
        requirement = Requirement(line)
        name = requirement.name.lower().replace("_", "-")
        if requirement.marker is None or not (name == wanted or name.startswith(f"{wanted}-")):
            continue
        extra = str(requirement.marker).rpartition("== ")[2].strip("\"'")
        return f"pip install 'lm_eval[{extra}]'"
    return f"pip install {module.partition('.')[0]}"


def _open_index(names: Sequence[str], include_path: Path | None) -> TaskManager:
    """Return the index of all tasks, or only of the folder's tasks if the names need no other.

    Reading the 15,000 files of lm-eval takes seconds.
    """
    if include_path is None:
        return _index(include_defaults=True)
    _check_folder(include_path)
    own = _index(include_path=include_path, include_defaults=False)
    try:
        for name in names:
            list(_leaves(own.task_index, name))
    except InputError:
        return _index(include_path=include_path, include_defaults=True)
    return own


def _index(**arguments: Any) -> TaskManager:
    with silent():
        return TaskManager(**arguments)


def _check_folder(folder: Path) -> None:
    """Refuse a folder with a file that lm-eval would skip because it cannot be read, and a folder without tasks."""
    key = f"suite.include_path={folder}"
    if not folder.is_dir():
        raise InputError(f"{key}: no such folder, expected one with YAML files of tasks")
    configs = []
    for file in sorted(folder.glob("**/*.yaml")):
        try:
            configs.append(load_yaml(file, resolve_func=False))
        except Exception as error:  # of the YAML reader, or a missing included file
            raise InputError(f"{file}: cannot be read as a task ({' '.join(str(error).split())[:160]})") from None
    if not any("task" in config or "group" in config for config in configs):
        raise InputError(f"{key}: no task in it, expected YAML files with the key task or group")


def _leaves(index: Mapping[str, Entry], name: str, above: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Yield the tasks of a name; those of a group or tag in their order."""
    entry = index.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, list(index), SHOWN)
        hint = f"did you mean {' or '.join(near)}?" if near else "`python -m lm_eval ls tasks` lists the names"
        inside = f" (in {above[-1]})" if above else ""
        raise InputError(f"{KEY}: no task, group or tag {name}{inside}; {hint}")
    if name in above:
        raise InputError(f"{KEY}: group {name} contains itself")
    if entry.kind is Kind.TAG:
        for member in sorted(entry.tags):
            yield from _leaves(index, member, (*above, name))
    elif entry.kind is Kind.GROUP:
        yield from _leaves_of_group(index, name, entry.cfg or {}, (*above, name))
    else:
        yield Leaf(name, entry.cfg or {}, entry.yaml_path)


def _leaves_of_group(
    index: Mapping[str, Entry], group: str, config: Mapping[str, Any], above: tuple[str, ...]
) -> Iterator[Leaf]:
    members = config.get("task")
    for member in members if isinstance(members, list) else []:
        changes = member if isinstance(member, dict) else {}
        name = str(changes.get("group") or changes.get("task") if changes else member)
        if name in index or not changes:
            for leaf in _leaves(index, name, above):
                yield leaf._replace(config={**leaf.config, **changes})
        elif "group" in changes:
            yield from _leaves_of_group(index, f"{group}::{name}", changes, above)
        else:
            yield Leaf(f"{group}::{name}", changes, None)


def _check_disjoint(leaves: Mapping[str, Sequence[Leaf]]) -> None:
    found: dict[str, str] = {}
    for name, of_name in leaves.items():
        for leaf in of_name:
            other = found.setdefault(leaf.name, name)
            if other != name:
                raise InputError(f"{KEY}: {other} and {name} both contain the task {leaf.name}, expected it once")


def _check_kind(leaf: Leaf) -> None:
    """Refuse a task that runs code of the model or of the hub, and one that shows images or sound."""
    where, config = f"task {leaf.name}", leaf.config
    if config.get("unsafe_code"):
        raise InputError(f"{where}: it runs code that the model writes (unsafe_code), which is not done here")
    if (config.get("dataset_kwargs") or {}).get("trust_remote_code"):
        raise InputError(f"{where}: its data set needs code of the hub (trust_remote_code), which is not run")
    for key in ("doc_to_image", "doc_to_audio"):
        if config.get(key):
            raise InputError(f"{where}: it shows images or sound ({key}), expected a task of text")


def _check_code(leaf: Leaf) -> None:
    """Import the Python files of a task, and refuse it if a package is missing."""
    if leaf.file is not None:
        with refusing(f"task {leaf.name}", f"{leaf.file.name} cannot be read"):
            load_yaml(leaf.file, resolve_func=True)


def _check_data(leaf: Leaf) -> None:
    """Ask the hub for a data set once; `datasets` would retry for half a minute."""
    path = leaf.config.get("dataset_path")
    if isinstance(path, str) and not looks_local(path):
        try:
            check_on_hub("dataset", path, None, LOCAL_COPY)
        except InputError as error:
            raise InputError(f"task {leaf.name}: {error}") from None
