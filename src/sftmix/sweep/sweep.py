"""Run a sweep: check all runs, list them, run the missing ones or submit them, and report the outcome."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from sftmix.artifacts.artifact import tidy
from sftmix.artifacts.files import is_locked, open_lock, try_lock
from sftmix.config.schema import Config
from sftmix.distributed.device import Device, visible_gpus
from sftmix.distributed.ranks import started_ranks
from sftmix.errors import ConfigError, InputError, Stopped
from sftmix.estimate.hardware import HARDWARE
from sftmix.quoting import key_of, shell_command, shell_word
from sftmix.stages.cost import ASSUMED, pipeline_cost
from sftmix.stages.device_choice import choose_device, planned_device
from sftmix.stages.inputs import check_hub, check_inputs, pin_known_revisions, pin_revisions, quantized_by
from sftmix.stages.plan import make_plan
from sftmix.sweep.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job, MissingInput, PlannedRun, plan_jobs
from sftmix.sweep.local import run_jobs, slots
from sftmix.sweep.manifest import restore_jobs, sweep_folder, write_manifest
from sftmix.sweep.store import LOCK
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
    """Check all runs of a sweep, then list them, run the missing ones, or submit them.

    Args:
        name: Name of the ablation, or `sweep`.
        overrides: Overrides that distinguish each run from the other runs.
        composed_by: Arguments that say where configs are read, for the printed commands.
        single: Whether a config file asks for the sweep.

    Returns:
        The exit code: 0, or 1 if a run failed.

    Raises:
        InputError: If a run cannot be started. In this case no run is started.
        Stopped: If a stop was requested.
    """
    found = [_plan(own, [*common, *own], compose) for own in overrides]
    runs, config = [run for run in found if isinstance(run, PlannedRun)], found[0].config
    if config.mode in ("certify", "check"):
        raise ConfigError(f"mode={config.mode}: it is for one run, not for a sweep")
    if config.trainer.num_nodes > 1 and (len(runs) > 1 or config.sweep.launcher == "slurm"):
        nodes = f"trainer.num_nodes={config.trainer.num_nodes}"
        raise ConfigError(f"{nodes}: a run of a sweep takes one node, slurm/train.sbatch runs one on several")
    if (
        config.mode not in ("list", "plan")
        and config.trainer.launcher != "own"
        and (started := started_ranks()) is not None
    ):
        raise ConfigError(
            f"{started.by}: a sweep (-m, ablation=) starts its own processes, start it by python train.py without "
            f"{started.by}"
        )
    if config.mode == "plan":
        from sftmix.sweep.planning import planned

        print(planned(runs))
        return 0
    folder = sweep_folder(Path(config.root), name, runs)
    group = None if config.wandb is None or config.wandb.get("group") is not None else folder.name
    shared, jobs = plan_jobs(runs, common, composed_by=composed_by, single=single, group=group)
    different = list({id(job): job for job in (*shared, *jobs)}.values())
    restore_jobs(folder, different)
    _update(different, folder)
    for job in different:
        if job.makes.is_complete:
            tidy(job.makes.folder)
    if config.mode == "list":
        print(listing(name, found, jobs, shared))
        return 0
    queued = [job for job in different if job.state in (RUNNING, WAITING) and job.slurm_id is not None]
    if queued and config.sweep.launcher == "local":
        raise InputError(
            f"sweep=local: SLURM has {queued[0].title} as job {queued[0].slurm_id}, and {len(queued) - 1} more: wait "
            f"for them, or cancel them by scancel"
        )
    for run, job in zip(runs, jobs, strict=True):
        if job.state != DONE:
            check_hub(run.config, run.plan.reads_reference)
    command = shell_command(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    head = {"name": name, "command": command, "common": list(common), "composed_by": list(composed_by)}

    def changed(job: Job) -> None:
        write_manifest(folder, head, runs, jobs, shared)
        if job.state != WAITING:
            done = sum(other.state == DONE for other in different)
            seconds = f", {job.seconds:,.0f} s" if job.seconds is not None and job.state == DONE else ""
            cause = f": {job.cause}" if job.cause else ""
            print(f"[{done}/{len(different)}] {job.state:<8} {one_line(job.title)}{seconds}{cause}", flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / LOCK) as handle:
        if not try_lock(handle):
            raise InputError(f"{folder}: another process runs this sweep; mode=list shows its progress")
        print(_title(name, jobs, shared), flush=True)
        for job in different:
            if job.state in (FAILED, STOPPED):
                job.state, job.cause, job.slurm_id = WAITING, None, None
        write_manifest(folder, head, runs, jobs, shared)
        script = Path(sys.argv[0]).resolve()  # train.py
        if config.sweep.launcher == "slurm":
            from sftmix.sweep.slurm import submit_jobs

            submit_jobs(different, config, script, folder, changed)
            print(f"submitted; the same command with mode=list shows how far they are. {folder}", flush=True)
            return 0
        gpus = visible_gpus() if config.trainer.accelerator != "cpu" else []
        at_once = slots(gpus, config.sweep.gpus_per_job, config.sweep.jobs)
        stopped = run_jobs(different, script, folder, at_once, config.trainer.stop_signal, changed)
    print(outcome(runs, jobs, shared, folder), flush=True)
    if stopped:
        raise Stopped("the sweep was stopped", stopped)
    return 0 if all(job.state == DONE for job in jobs) else 1


def _update(jobs: Sequence[Job], folder: Path) -> None:
    """Update the state of jobs that the manifest calls running: ask SLURM, or see whether their process has ended."""
    is_running = is_locked(folder / LOCK)
    for job in jobs:
        if job.state != DONE and job.slurm_id is not None:
            from sftmix.sweep.slurm import update_state

            update_state(folder, job)
        elif job.state == RUNNING and not is_running:
            job.state, job.cause = STOPPED, "cut off; the same command continues"


def _plan(own: tuple[str, ...], overrides: Sequence[str], compose: Compose) -> PlannedRun | MissingInput:
    config, note = None, ""
    try:
        config = compose(overrides)
        check_inputs(config)
        if config.mode == "plan":
            with suppress(InputError):  # without the hub, the newest commit stays unknown
                pin_revisions(config)
            device = planned_device(config.trainer, quantized_by(config), on_gpu=config.plan.gpu in HARDWARE)
            return PlannedRun(own, config, make_plan(config, device))
        if config.mode == "list":
            unknown = pin_known_revisions(config)
            note = f"the newest commit of {', '.join(unknown)} is not known yet" if unknown else ""
        if not note:
            pin_revisions(config)
        if config.sweep.launcher == "slurm" and config.sweep.gpus_per_job and config.trainer.accelerator != "cpu":
            # the jobs run on GPUs of other machines; artifacts depend on the precision and the layout there
            precision = "bf16-mixed" if config.trainer.precision == "auto" else config.trainer.precision
            device = Device("gpu", precision, config.trainer.layout)
        else:
            device = choose_device(config.trainer, quantized_by(config))
    except InputError as error:
        if own and config is not None and config.mode == "list" and not isinstance(error, ConfigError):
            return MissingInput(own, config, str(error))
        if not own or str(error).startswith(tuple(f"{key_of(override)}=" for override in own)):
            raise
        raise type(error)(f"run {' '.join(own)}: {error}") from None
    return PlannedRun(own, config, make_plan(config, device), note)


def _title(name: str, jobs: Sequence[Job], shared: Sequence[Job]) -> str:
    done = sum(job.state == DONE for job in jobs)
    title = "sweep" if name == "sweep" else f"ablation {name}"
    stages = f", {counted(len(shared), 'shared reference')}" if shared else ""
    return f"{title}: {counted(len(jobs), 'run')}{stages}; {done} of {len(jobs)} done"


def listing(name: str, runs: Sequence[PlannedRun | MissingInput], jobs: Sequence[Job], shared: Sequence[Job]) -> str:
    """Return the runs as lines: state, folder, command and cost of each, or which input is missing.

    Args:
        jobs: The job of each run whose inputs are there.
    """
    lines, of_runs = [_title(name, jobs, shared)], iter(jobs)
    missing = sum(isinstance(run, MissingInput) for run in runs)
    lines[0] += f"; {counted(missing, 'run')} without an input" if missing else ""
    for job in shared:
        lines += [f"  {'shared':<9}{job.state:<9}{_place(job)}", f"{'':20}{job.command}"]
    for number, run in enumerate(runs, start=1):
        if isinstance(run, MissingInput):
            lines += [f"  {number:<9}{'missing':<9}{_label(run)}", f"{'':20}{one_line(run.reason)}"]
            continue
        job, note = next(of_runs), f"  ({run.note}, so the folder gets another name)" if run.note else ""
        lines += [f"  {number:<9}{job.state:<9}{_label(run)}", f"{'':20}{_place(job)}{note}", f"{'':20}{job.command}"]
        if (cost := pipeline_cost(run.config, run.plan)) is not None:
            lines.append(f"{'':20}{cost.in_words}")
    return "\n".join([*lines, ASSUMED])


def _place(job: Job) -> str:
    return f"{job.makes.folder}" + (f"  ({job.cause})" if job.cause else "")


def _label(run: PlannedRun | MissingInput) -> str:
    return one_line(" ".join(run.overrides)) or "the run"


def outcome(runs: Sequence[PlannedRun], jobs: Sequence[Job], shared: Sequence[Job], folder: Path) -> str:
    """Return the outcome of a sweep: a line per run with the cause if it failed, and how to compare the runs."""
    done = sum(job.state == DONE for job in jobs)
    lines = ["", f"{done} of {len(jobs)} runs done"]
    lines += [f"  {job.state:<9}{_label(run)}{_cause(job)}" for run, job in zip(runs, jobs, strict=True)]
    lines += [f"  {job.state:<9}{job.title}{_cause(job)}" for job in shared if job.state != DONE]
    if any(job.makes == run.plan.target for run, job in zip(runs, jobs, strict=True)):
        lines.append(f"Compare them: python report.py sweep={shell_word(str(folder))}")
    return "\n".join(lines)


def _cause(job: Job) -> str:
    if job.cause is None:
        return ""
    return f"  {job.cause}" + (f"  (log: {job.log})" if job.log is not None and job.state == FAILED else "")
