"""The jobs of a sweep as jobs of SLURM, through submitit: each waits there for the stages that it shares."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sftmix.cli.arguments import CONFIG_FILE
from sftmix.config.schema import Config
from sftmix.errors import TRY_AGAIN, InputError
from sftmix.sweep.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job
from sftmix.sweep.local import cause_of
from sftmix.sweep.manifest import CONFIGS, LOGS, write_config

SIGNAL_BEFORE = 300  # seconds before its time is up in which a job saves its state
MOST_TIMES = 1000  # that a job goes back into the queue when its time is up
POLL = 0.5  # seconds
GOES_ON = {"PENDING", "RUNNING", "REQUEUED", "COMPLETING", "CONFIGURING", "SUSPENDED", "READY"}
UNKNOWN = "UNKNOWN"


class TrainJob:
    """What a job of SLURM does: train.py in a process of its own; when the time is up it saves and is queued again.

    Args:
        arguments: of Python: train.py and the file of its resolved configuration.
        log: file that its output is added to.
    """

    def __init__(self, arguments: Sequence[str], log: str) -> None:
        """Nothing is started yet."""
        self.arguments = list(arguments)
        self.log = log

    def __call__(self) -> None:
        """Run it to its end.

        Raises:
            RuntimeError: it failed, and its log says why.
        """
        with open(self.log, "ab") as output:
            process = subprocess.Popen([sys.executable, *self.arguments], stdout=output, stderr=output)
            self._process = process
            # a thread waits, so that the handler of a signal, which runs in this one, can wait too
            self._waiting = threading.Thread(target=process.wait, daemon=True)
            self._waiting.start()
            self._wait()
        if process.returncode == TRY_AGAIN:
            raise RuntimeError("stopped; the same command goes on")
        if process.returncode:
            raise RuntimeError(cause_of(process.returncode, Path(self.log)))

    def checkpoint(self) -> Any:
        """What submitit calls when the time is up: end the process, which saves its state, and go on later."""
        import submitit

        if self._waiting.is_alive():
            self._process.send_signal(signal.SIGTERM)
        self._wait()
        return submitit.helpers.DelayedSubmission(TrainJob(self.arguments, self.log))

    def _wait(self) -> None:
        while self._waiting.is_alive():
            time.sleep(POLL)


def submit_jobs(
    jobs: Sequence[Job], config: Config, script: Path, folder: Path, changed: Callable[[Job], None]
) -> None:
    """Submit all jobs that are neither done nor in the queue, each after those it needs.

    Args:
        jobs: those before others first.
        config: what SLURM is asked for.
        script: train.py.
        folder: of the sweep.
        changed: called when a job was submitted.

    Raises:
        InputError: submitit or SLURM is not there, or refuses.
    """
    slurm, gpus = config.sweep.slurm, config.sweep.gpus_per_job
    assert slurm is not None
    submitit = _submitit()
    logs = folder / LOGS
    try:
        executor = submitit.SlurmExecutor(folder=(folder / "slurm").resolve(), max_num_timeout=MOST_TIMES)
        logs.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            if job.state == DONE or job.slurm_id is not None:
                continue
            log = logs / f"{job.makes.folder.name}.log"
            before = [str(need.slurm_id) for need in job.needs if need.state != DONE]
            executor.update_parameters(
                job_name=job.makes.folder.name,
                partition=slurm.partition,
                account=slurm.account,
                qos=slurm.qos,
                time=max(1, round(slurm.hours * 60)),
                nodes=1,
                ntasks_per_node=1,
                gpus_per_node=gpus,
                cpus_per_task=slurm.cpus_per_gpu * (gpus or 1),
                mem=None if slurm.mem_gb is None else f"{slurm.mem_gb:g}GB",
                dependency=f"afterok:{':'.join(before)}" if before else None,
                signal_delay_s=SIGNAL_BEFORE,
                additional_parameters={"kill-on-invalid-dep": "yes", "requeue": True, **(slurm.more or {})},
            )
            submitted = executor.submit(
                TrainJob([str(script), CONFIG_FILE, str(write_config(folder / CONFIGS, job))], str(log.resolve()))
            )
            job.slurm_id, job.log, job.state, job.cause = str(submitted.job_id), log, RUNNING, None
            changed(job)
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError) as error:
        raise InputError(f"sweep=slurm: {' '.join(str(error).split())}") from None


def look(folder: Path, job: Job) -> None:
    """See how far a submitted job is that is not done: in the queue, running, failed or stopped.

    Raises:
        InputError: submitit is not there.
    """
    state = _state(folder, job)
    if state in GOES_ON:
        job.state, job.cause = WAITING if state == "PENDING" else RUNNING, None
    else:
        stopped = state in ("CANCELLED", "PREEMPTED", "TIMEOUT", UNKNOWN)
        job.state = STOPPED if stopped else FAILED
        said = cause_of(1, job.log) if job.log is not None and job.log.is_file() else "it said nothing"
        job.cause = f"SLURM's job {job.slurm_id} is {state}: {said}"


def _state(folder: Path, job: Job) -> str:
    """SLURM's word, without what follows it: CANCELLED by 4 is CANCELLED."""
    submitted = _submitit().SlurmJob(folder=(folder / "slurm").resolve(), job_id=str(job.slurm_id))
    try:
        return str(submitted.get_info(mode="force").get("State") or UNKNOWN).split()[0]
    except OSError:
        return UNKNOWN


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise InputError("sweep=slurm: it needs submitit, pip install 'sftmix[slurm]'") from None
    return submitit
