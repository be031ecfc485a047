"""Submit the jobs of a sweep to SLURM through submitit. Each job waits in SLURM's queue for the jobs that it needs."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sftmix.config.schema import Config
from sftmix.errors import TRY_AGAIN, InputError
from sftmix.sweep import CONFIG_FILE
from sftmix.sweep.jobs import DONE, FAILED, RUNNING, STOPPED, WAITING, Job
from sftmix.sweep.local import cause_of
from sftmix.sweep.manifest import prepare_job

SIGNAL_BEFORE = 300  # Seconds before the end of its time limit at which a job starts to save its state
MAX_TIMEOUTS = 1000  # Number of times that a job is queued again when its time limit is reached
POLL = 0.5  # Seconds
UNFINISHED = {"PENDING", "RUNNING", "REQUEUED", "COMPLETING", "CONFIGURING", "SUSPENDED", "READY"}
UNKNOWN = "UNKNOWN"


class TrainJob:
    """A job of SLURM: run train.py in a process. When the time limit is near, train.py saves and is queued again.

    Args:
        arguments: Path and arguments of train.py.
        log: File that the output is appended to.
    """

    def __init__(self, arguments: Sequence[str], log: str) -> None:
        self.arguments, self.log = list(arguments), log

    def __call__(self) -> None:
        """Run the process to its end.

        Raises:
            RuntimeError: If the process failed or was stopped.
        """
        with open(self.log, "ab") as output:
            process = subprocess.Popen([sys.executable, *self.arguments], stdout=output, stderr=output)
            self._process = process
            # `Popen.wait` runs in a thread: `checkpoint` is called by a signal handler in this thread and waits too
            self._waiting = threading.Thread(target=process.wait, daemon=True)
            self._waiting.start()
            self._wait()
        if process.returncode == TRY_AGAIN:
            raise RuntimeError("stopped; the same command continues")
        if process.returncode:
            raise RuntimeError(cause_of(process.returncode, Path(self.log)))

    def checkpoint(self) -> Any:
        """Let the process save its state and end, and submit the job again. submitit calls this at the time limit."""
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
    """Submit all jobs that are neither done nor queued, each after the jobs it needs, and call `changed` for each.

    Raises:
        InputError: If submitit or SLURM is not installed, or SLURM refuses a job.
    """
    slurm, gpus = config.sweep.slurm, config.sweep.gpus_per_job
    assert slurm is not None
    submitit = _submitit()
    try:
        executor = submitit.SlurmExecutor(folder=(folder / "slurm").resolve(), max_num_timeout=MAX_TIMEOUTS)
        for job in jobs:
            if job.state == DONE or job.slurm_id is not None:
                continue
            config_file, log = prepare_job(folder, job)
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
            submitted = executor.submit(TrainJob([str(script), CONFIG_FILE, str(config_file)], str(log.resolve())))
            job.slurm_id, job.log, job.state, job.cause = str(submitted.job_id), log, RUNNING, None
            changed(job)
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError) as error:
        raise InputError(f"sweep=slurm: {' '.join(str(error).split())}") from None


def update_state(folder: Path, job: Job) -> None:
    """Update the state of a submitted job that is not done: waiting, running, failed or stopped.

    Raises:
        InputError: If submitit is not installed.
    """
    submitted = _submitit().SlurmJob(folder=(folder / "slurm").resolve(), job_id=str(job.slurm_id))
    try:
        state = str(submitted.get_info(mode="force").get("State") or UNKNOWN).split()[0]  # "CANCELLED by 4"
    except OSError:
        state = UNKNOWN
    if state in UNFINISHED:
        job.state, job.cause = WAITING if state == "PENDING" else RUNNING, None
    else:
        job.state = STOPPED if state in ("CANCELLED", "PREEMPTED", "TIMEOUT", UNKNOWN) else FAILED
        cause = cause_of(1, job.log) if job.log is not None and job.log.is_file() else "it has no output"
        job.cause = f"SLURM's job {job.slurm_id} is {state}: {cause}"


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise InputError("sweep=slurm: it needs submitit, pip install 'sftmix[slurm]'") from None
    return submitit
