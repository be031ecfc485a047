"""Runs the jobs of a sweep on this machine: a fresh process each, one for each group of GPUs at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sftmix.cli.arguments import CONFIG_FILE
from sftmix.distributed.stopping import PARENT, blocked, stop_code, stops_handed_on
from sftmix.errors import TRY_AGAIN
from sftmix.sweep.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job
from sftmix.sweep.manifest import CONFIGS, LOGS, write_config
from sftmix.terminal import one_line

POLL = 0.05  # seconds between looks
SHOW_EVERY = 60.0  # seconds between two lines that say how far jobs are that run side by side
SAVING = b"interrupt: the running jobs save and end; a second Ctrl-C ends them at once\n"
CAUSE_CHARACTERS = 300


class Slot(NamedTuple):
    """What a job is given.

    Attributes:
        gpus: names of visible devices, or None: all that are visible.
    """

    gpus: tuple[str, ...] | None


class _Running(NamedTuple):
    job: Job
    process: "subprocess.Popen[bytes]"
    slot: Slot
    start: float


def slots(gpus: Sequence[str], gpus_per_job: int | None, jobs: int | None) -> list[Slot]:
    """How many jobs run at once, and on which GPUs each.

    Args:
        gpus: names of the visible devices; empty on a CPU.
        gpus_per_job: None: all of them.
        jobs: the most at once; None: as many as there are groups of GPUs, one on a CPU.
    """
    if gpus and gpus_per_job is not None:
        groups = [tuple(gpus[k : k + gpus_per_job]) for k in range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)]
        return [Slot(group) for group in groups[:jobs]]
    return [Slot(None)] * (jobs or 1)


def run_jobs(
    jobs: Sequence[Job],
    script: Path,
    folder: Path,
    slots: Sequence[Slot],
    stop_signal: str,
    changed: Callable[[Job], None],
) -> int:
    """Run all jobs that are not done, each after those it needs; one that fails stops none but those that need it.

    Args:
        jobs: in the order to start them.
        script: train.py.
        folder: of the sweep: `configs` and `logs` of the jobs are written there.
        slots: one for each job that may run at a time.
        stop_signal: name of the signal that asks for a stop, beside SIGTERM.
        changed: called when the state of a job has changed.

    Returns:
        The exit code of a stop that was asked for, or 0.

    Raises:
        KeyboardInterrupt: Ctrl-C came twice; the running jobs were killed.
    """
    free, running = list(slots), list[_Running]()
    shown, last_shown = dict[int, int](), time.monotonic()
    alone = len(slots) == 1
    with (
        stops_handed_on(lambda: [entry.process for entry in running], stop_signal, SAVING) as came,
        _killed_at_interrupt(running),
    ):
        while True:
            for entry in list(running):
                if alone:
                    _show(entry.job, shown)
                if entry.process.poll() is not None:
                    running.remove(entry)
                    free.append(entry.slot)
                    _end(entry, bool(came))
                    if alone:
                        _show(entry.job, shown)
                    changed(entry.job)
            for job in jobs:
                _look(job, changed)
                if free and not came and job.state == WAITING and job.is_ready:
                    running.append(_start(job, script, folder, free.pop(0)))
                    if came:  # meanwhile
                        running[-1].process.send_signal(signal.SIGTERM)
                    changed(job)
            if not running and (came or not any(job.state == WAITING and job.is_ready for job in jobs)):
                break
            if not alone and time.monotonic() - last_shown > SHOW_EVERY:
                last_shown = time.monotonic()
                for entry in running:
                    print(f"  {entry.job.title}: {last_line(entry.job.log)}", flush=True)
            time.sleep(POLL)
    return stop_code(came)


def _look(job: Job, changed: Callable[[Job], None]) -> None:
    """See what the end of other jobs means for one that waits."""
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
        job.log.unlink()  # never followed
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", PARENT: str(os.getpid())}
    if slot.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
    with (
        job.log.open("wb") as output,
        blocked(signal.SIGINT),
    ):  # a file and no pipe, which would break in a job that outlives this process
        process = subprocess.Popen(
            [sys.executable, str(script), CONFIG_FILE, str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    job.state, job.cause = RUNNING, None
    return _Running(job, process, slot, time.monotonic())


def _end(entry: _Running, asked: bool) -> None:
    job, code = entry.job, entry.process.returncode
    job.seconds = round(time.monotonic() - entry.start, 1)
    if code == 0 and job.makes.is_complete:
        job.state = DONE
    elif code == TRY_AGAIN or asked:
        job.state, job.cause = STOPPED, "stopped; the same command goes on"
    else:
        job.state, job.cause = FAILED, cause_of(code, job.log)


def cause_of(code: int, log: Path | None) -> str:
    """Why a job failed, in one line: its own error line, or the last that it said."""
    lines = _lines(log)
    told = next((line for line in reversed(lines) if line.startswith(("error: ", "config error: "))), None)
    if told is None and code < 0:
        told = f"ended by {signal.Signals(-code).name}" + (" (short of memory?)" if code == -signal.SIGKILL else "")
    if told is None:
        told = lines[-1] if lines else f"exit code {code}" + (", and it made nothing" if code == 0 else "")
    return one_line(told)[:CAUSE_CHARACTERS]


def last_line(log: Path | None) -> str:
    """What a job said last."""
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
    """Hand on what a job has said since the last look."""
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
    """Kill the running jobs at a second Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        for entry in running:
            entry.process.kill()
        for entry in running:
            entry.process.wait()
        raise
