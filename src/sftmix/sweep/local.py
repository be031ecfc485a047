"""Run the jobs of a sweep on this machine: a fresh process each, one at a time for each group of GPUs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.distributed.stopping import PARENT, blocked, stop_code, stops_handed_on
from sftmix.errors import TRY_AGAIN, ConfigError
from sftmix.sweep import CONFIG_FILE
from sftmix.sweep.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job
from sftmix.sweep.manifest import prepare_job
from sftmix.terminal import counted, one_line

POLL = 0.05  # Seconds between two polls
SHOW_EVERY = 60.0  # Seconds between two progress lines of jobs that run at the same time
SAVING = b"interrupt: the running jobs save and end; a second Ctrl-C ends them at once\n"
CAUSE_CHARACTERS = 300
Slot = tuple[str, ...] | None  # Names of the GPUs of a job; None: all visible ones


class _Running(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    slot: Slot
    start: float


def slots(gpus: Sequence[str], gpus_per_job: int | None, jobs: int | None) -> Sequence[Slot]:
    """Return the GPUs of each job, for as many jobs as run at the same time.

    Args:
        gpus: Names of the visible devices; empty on a CPU.
        jobs: Maximum number of jobs at the same time; None: one per group of GPUs, one on a CPU.

    Raises:
        ConfigError: If there are too few GPUs, or several jobs would each take all of them.
    """
    if gpus_per_job is not None and gpus_per_job > len(gpus):
        raise ConfigError(f"sweep.gpus_per_job={gpus_per_job}: {counted(len(gpus), 'GPU')} can be used here")
    if jobs is not None and jobs > 1 and gpus and gpus_per_job is None:
        raise ConfigError(f"sweep.jobs={jobs}: each job would take all {len(gpus)} GPUs, set sweep.gpus_per_job")
    if gpus_per_job is None:
        return [None] * (jobs or 1)
    return [tuple(gpus[k : k + gpus_per_job]) for k in range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)][:jobs]


def run_jobs(
    jobs: Sequence[Job],
    script: Path,
    folder: Path,
    slots: Sequence[Slot],
    stop_signal: str,
    changed: Callable[[Job], None],
) -> int:
    """Run all jobs that are not done, each after the jobs it needs. A failed job only stops the jobs that need it.

    Args:
        folder: Folder of the sweep.
        slots: GPUs of each job, for as many jobs as may run at the same time.
        stop_signal: Name of the signal that requests a stop, in addition to SIGTERM.
        changed: Called when the state of a job has changed.

    Returns:
        The exit code of a requested stop, or 0.

    Raises:
        KeyboardInterrupt: If Ctrl-C was pressed twice. The running jobs were killed.
    """
    free, running = list(slots), list[_Running]()
    shown, last_shown = dict[int, int](), time.monotonic()
    with stops_handed_on(lambda: [entry.process for entry in running], stop_signal, SAVING) as came:
        try:
            while True:
                for entry in list(running):
                    has_ended = entry.process.poll() is not None
                    if len(slots) == 1:
                        _show(entry.job, shown)
                    if has_ended:
                        running.remove(entry)
                        free.append(entry.slot)
                        _end(entry, bool(came))
                        changed(entry.job)
                for job in jobs:
                    _update(job, changed)
                    if free and not came and job.is_ready:
                        running.append(_start(job, script, folder, free.pop(0)))
                        if came:  # a signal has come since the check above
                            running[-1].process.send_signal(signal.SIGTERM)
                        changed(job)
                if not running and (came or not any(job.is_ready for job in jobs)):
                    break
                if len(slots) > 1 and time.monotonic() - last_shown > SHOW_EVERY:
                    last_shown = time.monotonic()
                    for entry in running:
                        print(f"  {entry.job.title}: {last_line(entry.job.log)}", flush=True)
                time.sleep(POLL)
        except KeyboardInterrupt:
            for entry in running:
                entry.process.kill()
            for entry in running:
                entry.process.wait()
            raise
    return stop_code(came)


def _update(job: Job, changed: Callable[[Job], None]) -> None:
    if job.state != WAITING:
        return
    failed = next((need for need in job.needs if need.state in (FAILED, STOPPED)), None)
    if job.makes.is_complete:
        job.state, job.cause = DONE, None
        changed(job)
    elif failed is not None:
        cause = f": {failed.cause}" if failed.cause else ""
        job.state, job.cause = failed.state, f"{failed.makes.folder.name} {failed.state}{cause}"
        changed(job)


def _start(job: Job, script: Path, folder: Path, slot: Slot) -> _Running:
    config_file, job.log = prepare_job(folder, job)
    if job.log.is_symlink():
        job.log.unlink()  # the target of the link must not be overwritten
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot)
    # the output goes to a file: a pipe would break if the job outlived this process
    with job.log.open("wb") as output, blocked(signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, str(script), CONFIG_FILE, str(config_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    job.state, job.cause = RUNNING, None
    return _Running(job, process, slot, time.monotonic())


def _end(entry: _Running, stop_requested: bool) -> None:
    job, code = entry.job, entry.process.returncode
    job.seconds = round(time.monotonic() - entry.start, 1)
    if code == 0 and job.makes.is_complete:
        job.state = DONE
    elif code == TRY_AGAIN or stop_requested:
        job.state, job.cause = STOPPED, "stopped; the same command continues"
    else:
        job.state, job.cause = FAILED, cause_of(code, job.log)


def cause_of(code: int, log: Path | None) -> str:
    """Return in one line why a job failed: its error line, or the last line of its output."""
    lines = _lines(log)
    cause = next((line for line in reversed(lines) if line.startswith(("error: ", "config error: "))), None)
    if cause is None and code < 0:
        cause = f"ended by {signal.Signals(-code).name}" + (" (short of memory?)" if code == -signal.SIGKILL else "")
    elif cause is None:
        cause = lines[-1] if lines else f"exit code {code}" + (", and it made nothing" if code == 0 else "")
    return one_line(cause)[:CAUSE_CHARACTERS]


def last_line(log: Path | None) -> str:
    lines = _lines(log)
    return one_line(lines[-1])[:CAUSE_CHARACTERS] if lines else "started"


def _lines(log: Path | None) -> list[str]:
    if log is None or not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _show(job: Job, shown: dict[int, int]) -> None:
    assert job.log is not None
    with job.log.open("rb") as file:
        file.seek(shown.get(id(job), 0))
        print(file.read().decode(errors="replace"), end="", flush=True)
        shown[id(job)] = file.tell()
