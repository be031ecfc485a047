"""What a sweep left: its rows, the folders of their runs, and what became of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sftmix.artifacts.artifact import is_complete
from sftmix.artifacts.files import is_locked
from sftmix.artifacts.manifest import MANIFEST, read_json
from sftmix.errors import InputError
from sftmix.quoting import key_of
from sftmix.reports.runs import PARTIAL, damage_of, read_record

SWEEPS, LOCK = "sweeps", ".lock"
# Settings that do not change what is learnt, as the fingerprints of runs leave them out.
INERT = (
    "seed",
    "root",
    "mode",
    "ablation",
    "trainer",
    "logger",
    "sweep",
    "data.num_workers",
    "confidence.batch_tokens",
)


@dataclass(frozen=True)
class SweepRow:
    """A row of a sweep.

    Attributes:
        overrides: what tells it from the other rows.
        target: folder of its run.
        baseline: folder of the NTP run at its settings.
        confidence: folder of the confidence it is split by, or None.
        command: makes this row alone.
        state: what became of its job.
        cause: why it failed, or None.
        log: of its job, or None.
        seconds: that its job took, or None.
    """

    overrides: tuple[str, ...]
    target: Path
    baseline: Path
    confidence: Path | None
    command: str
    state: str
    cause: str | None
    log: str | None
    seconds: float | None

    @cached_property
    def damage(self) -> str | None:
        """Why the files of its complete run cannot be read; None if they can, or if the run is not complete."""
        return damage_of(self.target) if is_complete(self.target) else None

    @property
    def is_done(self) -> bool:
        """Whether its run is complete and readable, whatever was written of its job."""
        return is_complete(self.target) and self.damage is None

    @property
    def is_unfinished(self) -> bool:
        """Whether its run was started and is not complete."""
        return not is_complete(self.target) and self.target.with_name(self.target.name + PARTIAL).is_dir()

    @cached_property
    def has_baseline(self) -> bool:
        """Whether the NTP run at its settings is another run that is complete and readable."""
        return self.baseline != self.target and is_complete(self.baseline) and damage_of(self.baseline) is None

    @property
    def seedless(self) -> tuple[str, ...]:
        """Its overrides but for the seed."""
        return tuple(override for override in self.overrides if key_of(override) != "seed")

    @cached_property
    def seed(self) -> str:
        """The override of its seed; if it has none, the seed of its run."""
        own = next((override for override in self.overrides if key_of(override) == "seed"), None)
        if own is None and self.is_done:
            return f"seed={read_record(self.target / MANIFEST).get('fields', {}).get('seed')}"
        return own or "the seed"


@dataclass(frozen=True)
class Sweep:
    """The rows of a sweep.

    Attributes:
        folder: where its manifest is.
        name: of the ablation, or `sweep`.
        command: what started it.
        common: overrides of all rows.
        rows: in order.
        shared: of each stage that several rows share and that failed, its command and cause.
        composed_by: arguments that say where its configurations are read: --config-dir and the like.
        page: Sweeps with the same value are shown on one page of a table; None: those with the same settings are.
    """

    folder: Path
    name: str
    command: str
    common: tuple[str, ...]
    rows: tuple[SweepRow, ...]
    shared: tuple[str, ...] = ()
    composed_by: tuple[str, ...] = ()
    page: str | None = None

    @property
    def settings(self) -> tuple[str, ...]:
        """What all rows have in common and changes what is learnt."""
        return tuple(sorted(override for override in self.common if not is_inert(override)))


def is_inert(override: str) -> bool:
    """Whether an override changes nothing that is learnt, but for the seed."""
    key = key_of(override)
    return key != "trainer.precision" and any(key == name or key.startswith(f"{name}.") for name in INERT)


def same_as(override: str) -> tuple[str, str]:
    """Key and value of an override, alike for two that mean the same: 0.1 and 0.10, quotes or none."""
    key, _, value = override.partition("=")
    try:
        return key.lstrip("+~"), repr(yaml.safe_load(value))
    except yaml.YAMLError:
        return key.lstrip("+~"), value


def has_all(overrides: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether overrides hold all the wanted ones."""
    return {same_as(override) for override in wanted} <= {same_as(override) for override in overrides}


def find_sweeps(root: Path) -> tuple[list[Sweep], list[str]]:
    """The sweeps under a root, and of each manifest that cannot be read the line that says why."""
    sweeps, unreadable = [], []
    for file in sorted((root / SWEEPS).glob(f"*/{MANIFEST}")):
        try:
            sweeps.append(read_sweep(file.parent))
        except InputError as error:
            unreadable.append(str(error))
    return sweeps, unreadable


def read_sweep(folder: Path) -> Sweep:
    """The sweep that a folder `<root>/sweeps/<name>` holds.

    Raises:
        InputError: there is none, its manifest is torn, or is of something else.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(f"{folder}: no sweep, expected a {MANIFEST} in it")
    try:
        content = read_json(file)
    except (ValueError, OSError) as error:
        raise InputError(f"{file}: cannot be read ({error}), the sweep's command writes it again") from None
    root, held = folder.parent.parent, is_held(folder)
    try:
        return Sweep(
            folder,
            _text(content, "name"),
            _text(content, "command"),
            _texts(content, "common"),
            tuple(_row(row, root, held) for row in _list(content, "rows")),
            tuple(_why_shared_failed(job) for job in _list(content, "shared") if job["state"] == "failed"),
            _texts(content, "composed_by") if "composed_by" in content else (),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: no manifest of a sweep ({error})") from None


def is_held(folder: Path) -> bool:
    """Return whether a process is running the sweep of a folder."""
    return is_locked(folder / LOCK)


def _row(row: Mapping[str, Any], root: Path, held: bool) -> SweepRow:
    state = _text(row, "state")
    if state == "running" and not held and row.get("slurm_id") is None:
        state = "stopped"  # the process that ran it is gone
    elif state == "waiting" and (held or row.get("slurm_id") is not None):
        state = "running"  # its turn comes
    confidence, seconds = _text_or_none(row, "confidence"), row.get("seconds")
    if seconds is not None and not isinstance(seconds, int | float):
        raise TypeError("seconds is no number")
    return SweepRow(
        _texts(row, "overrides"),
        _inside(root, _text(row, "target")),
        _inside(root, _text(row, "baseline")),
        None if confidence is None else _inside(root, confidence),
        _text(row, "command"),
        state,
        _text_or_none(row, "cause"),
        _text_or_none(row, "log"),
        seconds,
    )


def _why_shared_failed(job: Mapping[str, Any]) -> str:
    log = _text_or_none(job, "log")
    where = f" (log: {log})" if log else ""
    cause = _text_or_none(job, "cause") or "no cause was written"
    return f"a shared stage failed: {cause}{where}; {_text(job, 'command')}"


def _inside(root: Path, name: str) -> Path:
    if Path(name).name != name:
        raise TypeError(f"{name} is no name of a folder")
    return root / name


def _text(content: Mapping[str, Any], key: str) -> str:
    text = _text_or_none(content, key)
    if text is None:
        raise TypeError(f"no {key}")
    return text


def _text_or_none(content: Mapping[str, Any], key: str) -> str | None:
    if not isinstance(content, dict):
        raise TypeError("it holds no object")
    text = content.get(key)
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{key} is no text")
    return text


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise TypeError(f"no {key}")
    found: list[Any] = content[key]
    return found


def _texts(content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    texts = _list(content, key)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{key} holds what is no text")
    return tuple(texts)
