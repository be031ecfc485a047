"""The runs of a sweep, and its jobs: one for each missing run, and one for each stage that several runs share."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import Artifact
from sftmix.config.schema import Config, Sweep, to_dict
from sftmix.quoting import key_of, shell_command, train_script
from sftmix.stages.plan import Plan

DONE, RUNNING, FAILED, WAITING, STOPPED = "done", "running", "failed", "waiting", "stopped"
Parse = Callable[[list[str]], list[Any]]  # Hydra's parser of overrides


def expand(
    arguments: Sequence[str], params: Mapping[str, str], runs: Sequence[Sequence[str]], parse: Parse
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the overrides that all runs of a sweep have in common, and the other overrides of each run.

    Each listed run of the file is combined with the file's grid and all values that the command line sweeps over. If a
    key is on the command line, the file's values of the key are ignored.

    Args:
        arguments: Overrides of the command line.
        params: Grid of the file: values of each key, separated by commas.

    Raises:
        HydraException: If an override cannot be read.
    """
    given = parse(list(arguments))
    keys = {override.get_key_element() for override in given}
    common = [_text(override) for override in given if not override.is_sweep_override()]
    grid = [o for o in parse([f"{key}={value}" for key, value in params.items()]) if o.get_key_element() not in keys]
    grid += [override for override in given if override.is_sweep_override()]
    listed: list[list[str]] = [
        [_text(o) for o in parse(list(run)) if o.get_key_element() not in keys] for run in runs
    ] or [[]]
    product = itertools.product(*map(_values, grid))
    return tuple(common), list(dict.fromkeys((*run, *values) for values in product for run in listed))


def _text(override: Any) -> str:
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def _values(override: Any) -> list[str]:
    from hydra.errors import HydraException

    if not override.is_sweep_override():
        return [_text(override)]
    if not override.is_discrete_sweep():
        raise HydraException(f"{override.input_line}: an interval has no values to go through, list them")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep before it is started. The overrides distinguish the run from the other runs of the sweep."""

    overrides: tuple[str, ...]
    config: Config
    plan: Plan
    note: str = ""  # What mode=list does not know of the run


@dataclass(frozen=True)
class MissingInput:
    """A run of a sweep that cannot be planned, because a file that it reads is not there. Only mode=list shows it."""

    overrides: tuple[str, ...]
    config: Config
    reason: str


@dataclass
class Job:
    """A process that makes an artifact."""

    title: str  # Name in messages
    makes: Artifact
    arguments: tuple[str, ...]  # Arguments of train.py that make only this artifact
    config: dict[str, Any]  # The resolved config as plain containers. The process composes nothing
    needs: list["Job"] = field(default_factory=list)  # Jobs that must be done before
    state: str = WAITING  # DONE from the start if the artifact is complete
    cause: str | None = None  # Why the job failed, in one line
    log: Path | None = None
    seconds: float | None = None
    slurm_id: str | None = None

    def __post_init__(self) -> None:
        if self.makes.is_complete:
            self.state = DONE

    @property
    def command(self) -> str:
        """The command that makes only this artifact."""
        return shell_command(["python", train_script(), *self.arguments])

    @property
    def is_ready(self) -> bool:
        """Whether the job waits for nothing but its turn."""
        return self.state == WAITING and all(job.state == DONE for job in self.needs)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of the job in the manifest of its sweep."""
        return {
            "command": self.command,
            "state": self.state,
            "cause": self.cause,
            "log": None if self.log is None else str(self.log),
            "seconds": self.seconds,
            "slurm_id": self.slurm_id,
        }


def plan_jobs(
    runs: Sequence[PlannedRun],
    common: Sequence[str],
    *,
    composed_by: Sequence[str] = (),
    single: bool = False,
    group: str | None = None,
) -> tuple[list[Job], list[Job]]:
    """Return the shared jobs, and the job of each run. Runs with the same artifact have the same job.

    Args:
        composed_by: Arguments that say where configs are read, for the command of each job.
        single: Whether a config file asks for a sweep, so that the command of one run must ask for a single run.
        group: Group of Weights & Biases for the runs that log there without a group of their own.
    """
    always = [*composed_by, *(o for o in common if key_of(o) not in ("mode", "sweep") and key_of(o)[:6] != "sweep.")]
    extra = [*([f"logger.wandb.group={group}"] if group else []), *(["hydra.mode=RUN"] if single else [])]
    shared: dict[str, Job] = {}
    makes_reference: dict[str, Job] = {}
    jobs: dict[str, Job] = {}
    for run in runs:
        confidence, reference = run.plan.confidence, run.plan.reference
        if confidence is not None and confidence.fingerprint not in shared:
            arguments = (*always, *run.overrides, "mode=confidence", *extra)
            job = Job(confidence.folder.name, confidence, arguments, _resolved(run, "confidence", group))
            shared[confidence.fingerprint] = job
            if reference is not None:
                makes_reference[reference.folder.name] = job
    if all(run.config.mode == "confidence" for run in runs):  # no target is tuned
        return [], [shared[run.plan.confidence.fingerprint] for run in runs if run.plan.confidence is not None]
    for run in runs:
        target, confidence = run.plan.target, run.plan.confidence
        name = target.folder.name
        if name not in jobs:
            arguments = (*always, *run.overrides, *extra)
            # a mode among the common overrides, such as mode=list, is the mode of the sweep
            mode = run.config.mode if any(key_of(override) == "mode" for override in run.overrides) else "train"
            jobs[name] = Job(" ".join(run.overrides) or name, target, arguments, _resolved(run, mode, group))
        averaged = None if confidence is not None or run.plan.reference is None else run.plan.reference.folder.name
        made = makes_reference.get(averaged or name, jobs.get(averaged or ""))
        need = made if confidence is None else shared[confidence.fingerprint]
        if need is not None and need not in jobs[name].needs:
            jobs[name].needs.append(need)
    of_runs = [jobs[run.plan.target.folder.name] for run in runs]
    needed = {id(need) for job in of_runs if job.state != DONE for need in job.needs}
    return [job for job in shared.values() if job.state == DONE or id(job) in needed], of_runs


def _resolved(run: PlannedRun, mode: str, group: str | None) -> dict[str, Any]:
    """Return the config of a job: the config of its run, as a single run on this machine."""
    config = copy.deepcopy(run.config)
    config.mode = mode
    config.sweep = Sweep(launcher="local", jobs=None, gpus_per_job=None, slurm=None)
    if config.wandb is not None and config.wandb.get("group") is None:
        config.wandb["group"] = group
    return to_dict(config)
