"""Devices of a run, and the devices of this machine, without importing torch."""

import ctypes
import gc
import os
from typing import NamedTuple


class Device(NamedTuple):
    """Where and how a run computes."""

    accelerator: str  # cpu or gpu
    precision: str  # Lightning's name of the precision
    layout: str  # Layout of a micro-batch: padded, grouped or packed
    strategy: str = "single"  # single, ddp or fsdp
    num_local: int = 1  # Number of processes of a node, each with one device
    num_nodes: int = 1  # Number of nodes
    attention: str | None = None  # Implementation of attention that a model uses; None before a model is set up

    @property
    def name(self) -> str:
        """Torch's name of the accelerator."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    @property
    def world_size(self) -> int:
        """Number of processes over all nodes."""
        return self.num_local * self.num_nodes

    @property
    def in_words(self) -> str:
        """Description for the terminal."""
        count = self.num_local
        where = f"{count} GPUs" if count > 1 else "one GPU"
        if self.accelerator == "cpu":
            where = f"the CPU, {count} processes" if count > 1 else "the CPU"
        nodes = f" on each of {self.num_nodes} nodes" if self.num_nodes > 1 else ""
        how = {"single": "", "ddp": ", DDP", "fsdp": ", FSDP2"}[self.strategy]
        return f"{where}{nodes}{how}, precision {self.precision}"

    @property
    def is_apart(self) -> bool:
        """Whether each stage runs in new processes: in several, or in one on a GPU, which frees the GPU's memory."""
        return self.accelerator == "gpu" or self.strategy != "single"

    @property
    def can_flash(self) -> bool:
        """Whether flash attention is possible: on a GPU in half precision."""
        return self.accelerator == "gpu" and self.precision == "bf16-mixed"

    def release(self) -> None:
        """Free unused memory of the GPU."""
        if self.accelerator == "gpu":
            import torch

            gc.collect()
            torch.cuda.empty_cache()


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the visible GPUs as CUDA_VISIBLE_DEVICES names them, or their indices if the variable is not set."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    num_gpus = count_gpus()
    return named[:num_gpus] if named else [str(k) for k in range(num_gpus)]


def count_gpus() -> int:
    """Return the number of visible CUDA devices, from the driver's library; 0 if there is no driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
