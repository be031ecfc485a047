"""The command that makes a run again: its recorded configuration as the fewest settings of train.py."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sftmix.artifacts.manifest import read_json
from sftmix.config.load import from_hydra
from sftmix.config.schema import to_dict
from sftmix.errors import InputError
from sftmix.provenance.git import git_state
from sftmix.quoting import hydra_value, shell_command, train_script
from sftmix.reports.dict_paths import MISSING, leaves_of, look_up

NAMED_OTHERWISE = ("same",)  # a choice that has no name of its own: it follows the target's model


def rerun(run: Path, choices: Mapping[str, str], composed_by: Sequence[str] = ()) -> str:
    """The command that makes a run again, and below it, as comments, what has changed since.

    Args:
        run: folder of a reference, confidence or target.
        choices: the choice that each config group has by default.
        composed_by: arguments of train.py that say where configurations are read.

    Raises:
        InputError: it has no passport, or its configuration cannot be composed today.
    """
    try:
        record = read_json(run / "run.json")
        recorded: Mapping[str, Any] = record["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run / 'run.json'}: no passport of a run ({error})") from None
    arguments, unknown = overrides_of(recorded, choices)
    lines = [shell_command(["python", train_script(), *composed_by, *arguments])]
    if unknown:
        lines.append(f"# not in the record, as they ship now: {', '.join(unknown)}")
    lines += [f"# {line}" for line in _since(record.get("git"))]
    if run.is_dir() and Path(str(recorded.get("root"))).expanduser().resolve() == run.resolve().parent:
        lines.append("# it is there, so this command would find it done: add root=FOLDER to make it again")
    return "\n".join(lines)


def overrides_of(recorded: Mapping[str, Any], choices: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The fewest overrides that compose a configuration, and its settings that the record does not have.

    Raises:
        InputError: none do.
    """
    groups: list[str] = []
    composed = _compose(groups)
    in_turn = sorted(
        choices.items(), key=lambda entry: ("@" in entry[0], "/" in entry[0])
    )  # a follower after what it follows
    for group, default in in_turn:
        if group.startswith("hydra/") or group in ("ablation", "experiment"):
            continue
        own = _place(group)
        if any(_is_in(setting, own) for setting in _settings(recorded, composed)):
            choice = _choice(group, default, recorded, groups)
            if choice:
                groups += choice
                composed = _compose(groups)
    values = list(_settings(recorded, composed))
    for setting in reversed(values):  # what follows from another goes first: optimizer.lr from model.lr
        without = [other for other in values if other != setting]
        if not list(_settings(recorded, _compose([*groups, *without]))):
            values = without
    arguments = [*groups, *values]
    whole = to_dict(from_hydra(hydra.compose("config", arguments)))
    unknown = [key for key in leaves_of(whole) if look_up(recorded, key) is MISSING]
    different = [key for key, value in leaves_of(recorded).items() if look_up(whole, key) != value]
    if different:
        raise InputError(f"{different[0]}: the recorded configuration cannot be composed today, a setting has changed")
    return arguments, unknown


def _place(group: str) -> str:
    """Where a config group stands in the configuration."""
    name, _, package = group.partition("@")
    last = name.partition("/")[2]
    return ".".join(filter(None, (package, last))) if package else name.replace("/", ".")


def _is_in(setting: str, place: str) -> bool:
    """Whether a setting is of a part of the configuration."""
    key = setting.partition("=")[0].lstrip("+")
    return key == place or key.startswith(f"{place}.") or place.startswith(f"{key}.")


def _choice(group: str, default: str, recorded: Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    """The choice of a group that comes nearest to a configuration, as an override; none where that is the default."""
    options = GlobalHydra.instance().config_loader().get_group_options(group.partition("@")[0])
    part = look_up(recorded, _place(group))
    if isinstance(part, Mapping) and part.get("name") in options:
        options = [option for option in options if option in (part["name"], *NAMED_OTHERWISE)]
    options = [default, *(option for option in options if option != default and not option.startswith("_"))]

    def distance(option: str) -> int:
        overrides = [*chosen, *([] if option == default else [f"{group}={option}"])]
        try:
            return len(list(_settings(recorded, _compose(overrides))))
        except HydraException:
            return sys.maxsize

    best = min(options, key=distance)
    return [] if best == default else [f"{group}={best}"]


class _Composed(NamedTuple):
    """A composed configuration.

    Attributes:
        leaves: its values by their dotted names; `MISSING` where one has no value.
        followers: groups that follow another as a whole: one of their values cannot be set alone.
    """

    leaves: dict[str, Any]
    followers: list[str]


def _compose(overrides: Sequence[str]) -> _Composed:
    composed = _Composed({}, [])
    _add(hydra.compose("config", list(overrides)), "", composed)
    return composed


def _add(node: DictConfig, prefix: str, to: _Composed) -> None:
    for key in map(str, node):
        try:
            value = node[key]
        except OmegaConfBaseException:  # it has no value, or follows one that has none
            value = MISSING
        if isinstance(value, DictConfig) and len(value):
            if OmegaConf.is_interpolation(node, key):
                to.followers.append(f"{prefix}{key}")
            _add(value, f"{prefix}{key}.", to)
        else:
            is_container = isinstance(value, DictConfig | ListConfig)
            to.leaves[f"{prefix}{key}"] = OmegaConf.to_container(value, resolve=True) if is_container else value


def _settings(recorded: Mapping[str, Any], composed: _Composed) -> Iterator[str]:
    """The overrides that turn what is composed into what was recorded."""
    leaves, told = composed.leaves, set()
    for key, value in leaves_of(recorded).items():
        above = [key[: dot.start()] for dot in re.finditer(r"\.", key)]
        if key in leaves and _are_equal(leaves[key], value):
            continue
        # nothing is there and a group is wanted, or the group follows another as a whole
        whole = next((parent for parent in above if parent in leaves or parent in composed.followers), None)
        if whole is not None:
            if whole not in told:
                told.add(whole)
                yield f"{whole}={hydra_value(look_up(recorded, whole))}"
        elif key in leaves or any(other.startswith(f"{key}.") for other in leaves):
            yield f"{key}={hydra_value(value)}"
        else:
            yield f"+{key}={hydra_value(value)}"


def _are_equal(composed: Any, recorded: Any) -> bool:
    return bool(composed == recorded) and isinstance(composed, bool) == isinstance(recorded, bool)


def _since(git: Any) -> Iterator[str]:
    """What has changed of the source since a run."""
    now = git_state()
    if not isinstance(git, Mapping):
        yield "made outside a checkout: which source made it is not known"
        return
    if git.get("changed"):
        yield f"made at commit {git.get('commit')} with changes that no commit has"
    if now is None:
        yield f"made at commit {git.get('commit')}; this is no checkout"
    elif now["commit"] != git.get("commit"):
        yield f"made at commit {git.get('commit')}; this checkout is at {now['commit']}"
    if now is not None and now["changed"]:
        yield "this checkout has changes that no commit has"
