"""Run the jobs of a sweep on this machine: a fresh process each, one at a time for each group of GPUs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sftmix.distributed.stopping import PARENT, blocked, stop_code, stops_handed_on
from sftmix.errors import TRY_AGAIN, ConfigError
from sftmix.sweep import CONFIG_FILE
from sftmix.sweep.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job
from sftmix.sweep.manifest import CONFIGS, LOGS, write_config
from sftmix.terminal import counted, one_line

POLL = 0.05  # seconds between two polls
SHOW_EVERY = 60.0  # seconds between two progress lines of jobs that run at the same time
SAVING = b"interrupt: the running jobs save and end; a second Ctrl-C ends them at once\n"
CAUSE_CHARACTERS = 300
Slot = tuple[str, ...] | None  # names of the GPUs of a job; None: all visible ones


class _Running(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    slot: Slot
    start: float


def slots(gpus: Sequence[str], gpus_per_job: int | None, jobs: int | None) -> list[Slot]:
    """Return the GPUs of each of the jobs that run at the same time.

    Args:
        gpus: Names of the visible devices; empty on a CPU.
        gpus_per_job: None: all of them.
        jobs: Maximum number of jobs at the same time; None: one per group of GPUs, one on a CPU.

    Raises:
        ConfigError: If there are too few GPUs, or several jobs would each take all of them.
    """
    if gpus_per_job is not None and gpus_per_job > len(gpus):
        raise ConfigError(f"sweep.gpus_per_job={gpus_per_job}: {counted(len(gpus), 'GPU')} can be used here")
    if jobs is not None and jobs > 1 and gpus and gpus_per_job is None:
        raise ConfigError(f"sweep.jobs={jobs}: each job would take all {len(gpus)} GPUs, set sweep.gpus_per_job")
    if gpus and gpus_per_job is not None:
        groups = [tuple(gpus[k : k + gpus_per_job]) for k in range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)]
        return list(groups[:jobs])
    return [None] * (jobs or 1)


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
        script: Path of train.py.
        folder: Folder of the sweep: `configs` and `logs` of the jobs are written into it.
        slots: GPUs of each job that may run at the same time.
        stop_signal: Name of the signal that requests a stop, beside SIGTERM.
        changed: Called when the state of a job has changed.

    Returns:
        The exit code of a requested stop, or 0.

    Raises:
        KeyboardInterrupt: If Ctrl-C came twice; the running jobs were killed.
    """
    free, running = list(slots), list[_Running]()
    shown, last_shown = dict[int, int](), time.monotonic()
    with (
        stops_handed_on(lambda: [entry.process for entry in running], stop_signal, SAVING) as came,
        _killed_at_interrupt(running),
    ):
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
                if free and not came and job.state == WAITING and job.is_ready:
                    running.append(_start(job, script, folder, free.pop(0)))
                    if came:  # meanwhile
                        running[-1].process.send_signal(signal.SIGTERM)
                    changed(job)
            if not running and (came or not any(job.state == WAITING and job.is_ready for job in jobs)):
                break
            if len(slots) > 1 and time.monotonic() - last_shown > SHOW_EVERY:
                last_shown = time.monotonic()
                for entry in running:
                    print(f"  {entry.job.title}: {last_line(entry.job.log)}", flush=True)
            time.sleep(POLL)
    return stop_code(came)


def _update(job: Job, changed: Callable[[Job], None]) -> None:
    if job.state != WAITING:
        return
    if job.makes.is_complete:
        job.state, job.cause = DONE, None
        changed(job)
    elif (before := job.failed_need) is not None:
        cause = f"{before.makes.folder.name} {before.state}" + (f": {before.cause}" if before.cause else "")
        job.state, job.cause = before.state, cause
        changed(job)


def _start(job: Job, script: Path, folder: Path, slot: Slot) -> _Running:
    logs, config = folder / LOGS, write_config(folder / CONFIGS, job)
    logs.mkdir(parents=True, exist_ok=True)
    job.log = logs / f"{job.makes.folder.name}.log"
    if job.log.is_symlink():
        job.log.unlink()  # links are never followed
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot)
    # the output goes to a file: a pipe would break if the job outlived this process
    with job.log.open("wb") as output, blocked(signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, str(script), CONFIG_FILE, str(config)],
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
    if cause is None:
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
        new = file.read()
        shown[id(job)] = file.tell()
    if new:
        sys.stdout.flush()
        sys.stdout.write(new.decode(errors="replace"))
        sys.stdout.flush()


@contextmanager
def _killed_at_interrupt(running: list[_Running]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        for entry in running:
            entry.process.kill()
        for entry in running:
            entry.process.wait()
        raise
