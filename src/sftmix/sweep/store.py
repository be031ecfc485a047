"""Read the manifest of a sweep: its runs, their folders, and the state of each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sftmix.artifacts.artifact import is_complete
from sftmix.artifacts.files import PARTIAL, is_locked
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.config import fields
from sftmix.config.schema import Config
from sftmix.errors import InputError
from sftmix.provenance.runs import damage_of, read_record
from sftmix.quoting import key_of

SWEEPS, LOCK = "sweeps", ".lock"


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep, as the manifest of the sweep describes it."""

    overrides: tuple[str, ...]  # Overrides that distinguish the run from the other runs of the sweep
    target: Path
    baseline: Path  # Folder of the NTP run with the same settings
    command: str  # Command that makes only this run
    state: str
    cause: str | None = None  # Why the job failed
    log: str | None = None

    @cached_property
    def damage(self) -> str | None:
        """Why the files of the complete run cannot be read; None if they can, or if the run is not complete."""
        return damage_of(self.target) if is_complete(self.target) else None

    @property
    def is_done(self) -> bool:
        """Whether the run is complete and readable, whatever the state of its job."""
        return is_complete(self.target) and self.damage is None

    @property
    def is_unfinished(self) -> bool:
        """Whether the run was started and is not complete."""
        return not is_complete(self.target) and self.target.with_name(self.target.name + PARTIAL).is_dir()

    @cached_property
    def has_baseline(self) -> bool:
        """Whether the NTP run with the same settings is another run that is complete and readable."""
        return self.baseline != self.target and is_complete(self.baseline) and damage_of(self.baseline) is None

    @property
    def seedless(self) -> tuple[str, ...]:
        """The overrides of the run except its seed."""
        return tuple(override for override in self.overrides if key_of(override) != "seed")

    @cached_property
    def seed(self) -> str:
        """The override of the seed; without such an override, the seed of the complete run."""
        own = next((override for override in self.overrides if key_of(override) == "seed"), None)
        if own is None and self.is_done:
            return f"seed={read_record(self.target / MANIFEST).get('fields', {}).get('seed')}"
        return own or "the seed"


@dataclass(frozen=True)
class StoredSweep:
    """A sweep, as its manifest describes it."""

    folder: Path
    name: str  # Name of the ablation, or `sweep`
    command: str
    common: tuple[str, ...]  # Overrides of all runs
    runs: tuple[SweepRun, ...]
    shared: tuple[str, ...] = ()  # Command and cause of each failed stage that several runs share
    composed_by: tuple[str, ...] = ()  # Arguments that say where configs are read: --config-dir and the like
    page: str | None = None  # Sweeps with the same page are shown in one table; None: sweeps with the same settings

    @property
    def settings(self) -> tuple[str, ...]:
        """Overrides of all runs that change what is learned."""
        return tuple(sorted(override for override in self.common if not is_inert(override)))


def is_inert(override: str) -> bool:
    """Return whether an override does not change what is learned, or is the seed."""
    key = key_of(override)
    return key in ("seed", "ablation") or fields.is_inert(key, Config)


def same_as(override: str) -> tuple[str, str]:
    """Return key and value of an override, equal for overrides that mean the same, such as 0.1 and 0.10."""
    key, _, value = override.partition("=")
    try:
        return key.lstrip("+~"), repr(yaml.safe_load(value))
    except yaml.YAMLError:
        return key.lstrip("+~"), value


def has_all(overrides: Sequence[str], required: Sequence[str]) -> bool:
    """Return whether some overrides contain all required ones."""
    return {same_as(override) for override in required} <= {same_as(override) for override in overrides}


def find_sweeps(root: Path) -> tuple[list[StoredSweep], list[str]]:
    """Return the sweeps under a root, and an error line for each manifest that cannot be read."""
    sweeps, unreadable = [], []
    for file in sorted((root / SWEEPS).glob(f"*/{MANIFEST}")):
        try:
            sweeps.append(read_sweep(file.parent))
        except InputError as error:
            unreadable.append(str(error))
    return sweeps, unreadable


def read_content(folder: Path) -> Mapping[str, Any]:
    """Return the content of the manifest of a sweep.

    Raises:
        InputError: If the manifest is missing or damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(f"{folder}: not a sweep, expected {MANIFEST} in this folder")
    try:
        content: Mapping[str, Any] = read_json(file)
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: cannot be read ({error}), the command of the sweep writes it again") from None
    return content


def read_sweep(folder: Path) -> StoredSweep:
    """Return the sweep of a folder `<root>/sweeps/<name>`.

    Raises:
        InputError: If there is no manifest of a sweep, or the manifest is damaged.
    """
    content, root, held = read_content(folder), folder.parent.parent, is_locked(folder / LOCK)
    try:
        return StoredSweep(
            folder,
            _get(content, "name", str),
            _get(content, "command", str),
            _texts(content, "common"),
            tuple(_run(entry, root, held) for entry in _get(content, "runs", list)),
            tuple(_failed_stage(job) for job in _get(content, "shared", list) if _get(job, "state", str) == "failed"),
            _texts(content, "composed_by"),
        )
    except TypeError as error:
        raise InputError(f"{folder / MANIFEST}: not the manifest of a sweep ({error})") from None


def _run(entry: Any, root: Path, held: bool) -> SweepRun:
    state = _get(entry, "state", str)
    is_queued = _get(entry, "slurm_id", str | None) is not None
    if state == "running" and not held and not is_queued:
        state = "stopped"  # the process of the sweep has ended
    elif state == "waiting" and (held or is_queued):
        state = "running"  # a living process or SLURM will start the run
    for name in ("target", "baseline"):
        if Path(_get(entry, name, str)).name != entry[name]:
            raise TypeError(f"{entry[name]} is not the name of a folder")
    return SweepRun(
        _texts(entry, "overrides"),
        root / entry["target"],
        root / entry["baseline"],
        _get(entry, "command", str),
        state,
        _get(entry, "cause", str | None),
        _get(entry, "log", str | None),
    )


def _failed_stage(job: Any) -> str:
    log, cause = _get(job, "log", str | None), _get(job, "cause", str | None)
    where = f" (log: {log})" if log else ""
    return f"a shared stage failed: {cause or 'no cause was written'}{where}; {_get(job, 'command', str)}"


def _get(entry: Any, key: str, kind: Any) -> Any:
    """Return a field of a JSON object.

    Raises:
        TypeError: If the field is missing or of another type.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
        raise TypeError(f"no {key}, or of another type")
    return entry.get(key)


def _texts(entry: Any, key: str) -> tuple[str, ...]:
    texts = tuple(_get(entry, key, list))
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{key} holds something other than text")
    return texts
