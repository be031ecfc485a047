"""The jobs of a sweep: one a row that is not there yet, and before them, once, the stages that several rows share."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftmix.artifacts.artifact import Artifact
from sftmix.config.schema import Config, Sweep, to_dict
from sftmix.quoting import key_of, shell_command, train_script
from sftmix.stages.plan import Plan

DONE, RUNNING, FAILED, WAITING, STOPPED = "done", "running", "failed", "waiting", "stopped"


@dataclass(frozen=True)
class Row:
    """A row of a sweep.

    Attributes:
        overrides: what tells it from the others.
        config: its configuration.
        plan: its artifacts.
    """

    overrides: tuple[str, ...]
    config: Config
    plan: Plan


@dataclass
class Job:
    """A process that makes an artifact.

    Attributes:
        title: Name in messages.
        makes: its artifact.
        arguments: Arguments of train.py that make only this artifact.
        config: its resolved configuration as plain containers: the process reads this and composes nothing.
        needs: jobs that come before it.
        state: done, running, failed, waiting or stopped.
        cause: why it failed, in one line.
        log: file of its output.
        seconds: how long it took.
        slurm_id: its job there.
    """

    title: str
    makes: Artifact
    arguments: tuple[str, ...]
    config: dict[str, Any]
    needs: list["Job"] = field(default_factory=list)
    state: str = WAITING
    cause: str | None = None
    log: Path | None = None
    seconds: float | None = None
    slurm_id: str | None = None

    @property
    def command(self) -> str:
        """The command that makes only this artifact."""
        return shell_command(["python", train_script(), *self.arguments])

    @property
    def is_ready(self) -> bool:
        """Whether all that it needs is there."""
        return all(job.state == DONE for job in self.needs)

    @property
    def failed_need(self) -> "Job | None":
        """A job before it that failed."""
        return next((job for job in self.needs if job.state in (FAILED, STOPPED)), None)

    def as_dict(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "command": self.command,
            "state": self.state,
            "cause": self.cause,
            "log": None if self.log is None else str(self.log),
            "seconds": self.seconds,
            "slurm_id": self.slurm_id,
        }


def plan_jobs(
    rows: Sequence[Row],
    common: Sequence[str],
    *,
    composed_by: Sequence[str] = (),
    single: bool = False,
    group: str | None = None,
) -> tuple[list[Job], list[Job]]:
    """Return the shared jobs, and the job of each row; rows that mean the same run have the same job.

    Args:
        rows: of the sweep.
        common: overrides of all rows.
        composed_by: arguments that say where configurations are read, for the command of each job.
        single: Whether a configuration file asks for a sweep, so that the command of a row must ask for one run.
        group: of Weights & Biases, for the rows that log there without a group of their own.
    """
    always = [*composed_by, *(o for o in common if key_of(o) not in ("mode", "sweep") and key_of(o)[:6] != "sweep.")]
    grouped = [] if group is None else [f"logger.wandb.group={group}"]
    extra = [*grouped, *(["hydra.mode=RUN"] if single else [])]
    shared: dict[str, Job] = {}
    makes_reference: dict[str, Job] = {}
    jobs: dict[str, Job] = {}
    for row in rows:
        confidence, reference = row.plan.confidence, row.plan.reference
        if confidence is not None and confidence.fingerprint not in shared:
            arguments = (*always, *row.overrides, "mode=confidence", *extra)
            job = Job(confidence.folder.name, confidence, arguments, _resolved(row, "confidence", group))
            job.state = DONE if confidence.is_complete else WAITING
            shared[confidence.fingerprint] = job
            if reference is not None:
                makes_reference[reference.folder.name] = job
    for row in rows:
        target, confidence = row.plan.target, row.plan.confidence
        name = target.folder.name
        if name not in jobs:
            title, mode = " ".join(row.overrides) or name, _mode(row)
            arguments = (*always, *row.overrides, *extra)
            jobs[name] = Job(title, target, arguments, _resolved(row, mode, group))
            jobs[name].state = DONE if target.is_complete else WAITING
        if confidence is not None:
            need: Job | None = shared[confidence.fingerprint]
        else:
            need = makes_reference.get(name)
        if need is not None and need not in jobs[name].needs:
            jobs[name].needs.append(need)
    of_rows = [jobs[row.plan.target.folder.name] for row in rows]
    wanted = {id(need) for job in of_rows if job.state != DONE for need in job.needs}
    return [job for job in shared.values() if job.state == DONE or id(job) in wanted], of_rows


def _mode(row: Row) -> str:
    """The mode of a row's own job: mode=list of the command line is of the whole sweep."""
    return row.config.mode if any(key_of(override) == "mode" for override in row.overrides) else "train"


def _resolved(row: Row, mode: str, group: str | None) -> dict[str, Any]:
    """The configuration of a job: that of its row, as a single run on this machine."""
    config = copy.deepcopy(row.config)
    config.mode = mode
    config.sweep = Sweep(launcher="local", jobs=None, gpus_per_job=None, slurm=None)
    if config.wandb is not None and config.wandb.get("group") is None:
        config.wandb["group"] = group
    return to_dict(config)
