"""A sweep from its rows to its end: what is there, what is to be done, who does it, and what came out."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sftmix.artifacts.artifact import tidy
from sftmix.config.schema import Config
from sftmix.distributed.device import Device, visible_gpus
from sftmix.distributed.ranks import started_ranks
from sftmix.errors import ConfigError, InputError, Stopped
from sftmix.quoting import key_of, shell_command, shell_word
from sftmix.stages.device_choice import choose_device
from sftmix.stages.inputs import check_hub, check_inputs, pin_revisions
from sftmix.stages.plan import make_plan
from sftmix.sweep.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job, Row, plan_jobs
from sftmix.sweep.local import Slot, run_jobs, slots
from sftmix.sweep.manifest import held, read_back, sweep_folder, write_manifest
from sftmix.sweep.store import is_held
from sftmix.terminal import counted, one_line

Compose = Callable[[Sequence[str]], Config]


def run_sweep(
    name: str,
    common: Sequence[str],
    overrides: Sequence[tuple[str, ...]],
    compose: Compose,
    *,
    composed_by: Sequence[str] = (),
    single: bool = False,
) -> int:
    """Check all rows, then list them, run those that are missing, or submit them.

    Args:
        name: the ablation's, or `sweep`.
        common: overrides of all rows.
        overrides: what tells each row from the others.
        compose: the checked configuration of overrides.
        composed_by: arguments that say where configurations are read, for the printed commands.
        single: Whether a configuration file asks for the sweep.

    Returns:
        The exit code: 0, or 1 where a row failed.

    Raises:
        InputError: a row cannot be run; none was then.
        Stopped: a stop was asked for.
    """
    rows = [_row(own, [*common, *own], compose) for own in overrides]
    config = rows[0].config
    if config.mode == "certify":
        raise ConfigError("mode=certify: it is of one run, not of a sweep")
    if config.trainer.num_nodes > 1 and (len(rows) > 1 or config.sweep.launcher == "slurm"):
        nodes = f"trainer.num_nodes={config.trainer.num_nodes}"
        raise ConfigError(f"{nodes}: a row of a sweep takes one node, slurm/train.sbatch runs one on several")
    if config.mode != "list" and config.trainer.launcher != "own" and (started := started_ranks()) is not None:
        raise ConfigError(
            f"{started.by}: a sweep (-m, ablation=) starts its own processes, start it by python train.py without "
            f"{started.by}"
        )
    folder = sweep_folder(Path(config.root), name, rows)
    group = None if config.wandb is None or config.wandb.get("group") is not None else folder.name
    shared, jobs = plan_jobs(rows, common, composed_by=composed_by, single=single, group=group)
    read_back(folder, jobs, shared)
    different = list({id(job): job for job in (*shared, *jobs)}.values())
    _look(different, folder)
    for job in different:
        if job.makes.is_complete:
            tidy(job.makes.folder)
    if config.mode == "list":
        print(listing(name, rows, jobs, shared))
        return 0
    queued = [job for job in different if job.state in (RUNNING, WAITING) and job.slurm_id is not None]
    if queued and config.sweep.launcher == "local":
        raise InputError(
            f"sweep=local: SLURM has {queued[0].title} as job {queued[0].slurm_id}, and {len(queued) - 1} more: wait "
            f"for them, or cancel them by scancel"
        )
    for row, job in zip(rows, jobs, strict=True):
        if job.state != DONE:
            check_hub(row.config, row.plan.tunes_reference)

    def changed(job: Job) -> None:
        write_manifest(folder, name, _command(), common, rows, jobs, shared, composed_by)
        if job.state != WAITING:
            _say(job, different)

    with held(folder):
        print(_head(name, jobs, shared), flush=True)
        for job in different:
            if job.state in (FAILED, STOPPED):
                job.state, job.cause, job.slurm_id = WAITING, None, None
        write_manifest(folder, name, _command(), common, rows, jobs, shared, composed_by)
        if config.sweep.launcher == "slurm":
            from sftmix.sweep.slurm import submit_jobs

            submit_jobs(different, config, script(), folder, changed)
            print(f"submitted; the same command with mode=list shows how far they are. {folder}", flush=True)
            return 0
        gpus = visible_gpus() if config.trainer.accelerator != "cpu" else []
        stopped = run_jobs(different, script(), folder, _slots(config, gpus), config.trainer.stop_signal, changed)
    print(outcome(rows, jobs, shared, folder), flush=True)
    if stopped:
        raise Stopped("the sweep was stopped", stopped)
    return 0 if all(job.state == DONE for job in jobs) else 1


def _look(jobs: Sequence[Job], folder: Path) -> None:
    """See what became of jobs that the manifest calls running: SLURM knows, or the process that ran them is gone."""
    submitted = [job for job in jobs if job.state != DONE and job.slurm_id is not None]
    if submitted:
        from sftmix.sweep.slurm import look

        for job in submitted:
            look(folder, job)
    if not is_held(folder):
        for job in jobs:
            if job.state == RUNNING and job.slurm_id is None:
                job.state, job.cause = STOPPED, "cut off; the same command goes on"


def _slots(config: Config, gpus: list[str]) -> list[Slot]:
    wanted = config.sweep.gpus_per_job
    if wanted is not None and wanted > len(gpus):
        raise ConfigError(f"sweep.gpus_per_job={wanted}: {counted(len(gpus), 'GPU')} can be used here")
    if config.sweep.jobs is not None and config.sweep.jobs > 1 and gpus and wanted is None:
        raise ConfigError(
            f"sweep.jobs={config.sweep.jobs}: each job would take all {len(gpus)} GPUs, set sweep.gpus_per_job"
        )
    return slots(gpus, wanted, config.sweep.jobs)


def script() -> Path:
    """The program that was called: train.py."""
    return Path(sys.argv[0]).resolve()


def _command() -> str:
    return shell_command(["python", Path(sys.argv[0]).name, *sys.argv[1:]])


def _row(own: tuple[str, ...], overrides: Sequence[str], compose: Compose) -> Row:
    try:
        config = compose(overrides)
        check_inputs(config)
        pin_revisions(config)
        device = _device(config)
    except InputError as error:
        if not own or str(error).startswith(tuple(f"{key_of(override)}=" for override in own)):
            raise
        raise type(error)(f"row {' '.join(own)}: {error}") from None
    return Row(own, config, make_plan(config, device))


def _device(config: Config) -> Device:
    """Where a row will compute, as far as its artifacts depend on it; jobs of SLURM find GPUs elsewhere."""
    if config.sweep.launcher == "slurm" and config.sweep.gpus_per_job and config.trainer.accelerator != "cpu":
        precision = "bf16-mixed" if config.trainer.precision == "auto" else config.trainer.precision
        return Device("gpu", precision, config.trainer.layout)
    return choose_device(config.trainer)


def _head(name: str, jobs: Sequence[Job], shared: Sequence[Job]) -> str:
    done = sum(job.state == DONE for job in jobs)
    title = "sweep" if name == "sweep" else f"ablation {name}"
    stages = f", {counted(len(shared), 'shared reference')}" if shared else ""
    return f"{title}: {counted(len(jobs), 'row')}{stages}; {done} of {len(jobs)} done"


def listing(name: str, rows: Sequence[Row], jobs: Sequence[Job], shared: Sequence[Job]) -> str:
    """The rows, what is there already, and the command of each."""
    lines = [_head(name, jobs, shared)]
    for job in shared:
        lines += [f"  {'shared':<9}{job.state:<9}{_place(job)}", f"{'':20}{job.command}"]
    for number, (row, job) in enumerate(zip(rows, jobs, strict=True), start=1):
        what = one_line(" ".join(row.overrides)) or "the run"
        lines += [f"  {number:<9}{job.state:<9}{what}", f"{'':20}{_place(job)}", f"{'':20}{job.command}"]
    return "\n".join(lines)


def _place(job: Job) -> str:
    cause = f"  ({job.cause})" if job.cause else ""
    return f"{job.makes.folder}{cause}"


def _say(job: Job, jobs: Sequence[Job]) -> None:
    done = sum(other.state == DONE for other in jobs)
    seconds = f", {job.seconds:,.0f} s" if job.seconds is not None and job.state == DONE else ""
    cause = f": {job.cause}" if job.cause else ""
    print(f"[{done}/{len(jobs)}] {job.state:<8} {one_line(job.title)}{seconds}{cause}", flush=True)


def outcome(rows: Sequence[Row], jobs: Sequence[Job], shared: Sequence[Job], folder: Path) -> str:
    """What came of a sweep: a line a row, why one failed, and how to look at it."""
    done = sum(job.state == DONE for job in jobs)
    lines = ["", f"{done} of {len(jobs)} rows done"]
    for row, job in zip(rows, jobs, strict=True):
        lines.append(f"  {job.state:<9}{one_line(' '.join(row.overrides)) or 'the run'}" + _cause(job))
    for job in shared:
        if job.state != DONE:
            lines.append(f"  {job.state:<9}{job.title}" + _cause(job))
    lines.append(f"Compare them: python report.py sweep={shell_word(str(folder))}")
    return "\n".join(lines)


def _cause(job: Job) -> str:
    if job.cause is None:
        return ""
    return f"  {job.cause}" + (f"  (log: {job.log})" if job.log is not None and job.state == FAILED else "")
