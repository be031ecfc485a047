"""Processes with the environment variables that torchrun and srun set."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_as(by: str, arguments: list[str], num_ranks: int = 2, **options: Any) -> list["subprocess.Popen[str]"]:
    """Start Python once for each rank on this machine.

    Args:
        by: torchrun or srun, whose variables the processes get.
        arguments: Arguments of Python.
        num_ranks: Number of processes.
        options: Of `subprocess.Popen`.
    """
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    at["TORCH_CPP_LOG_LEVEL"] = "FATAL"
    processes = []
    for rank in range(num_ranks):
        if by == "torchrun":
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
        else:
            own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": num_ranks, "SLURM_NNODES": 1}
            own |= {"SLURM_STEP_ID": 0, "SLURM_JOB_ID": 7}
        environment = {**os.environ, **at, **{name: str(value) for name, value in own.items()}}
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **options,
            )
        )
    return processes


def ends_of(processes: list["subprocess.Popen[str]"], seconds: float = 300.0) -> list[tuple[int, str, str]]:
    """Return the exit code, the standard output and the standard error of each process."""
    outputs = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def weights_of(root: Path, kind: str) -> tuple[str, bytes]:
    """Return the name of the only artifact of a kind under a root, and the bytes of its weights."""
    (folder,) = (path for path in root.glob(f"{kind}-*") if path.suffix != ".partial")
    return folder.name, (folder / "model/model.safetensors").read_bytes()
