"""Devices of a run, and the devices of this machine, without importing torch."""

import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

COMPUTE_CAPABILITY = (75, 76)  # CUDA's numbers of the two attributes, major and minor


class Device(NamedTuple):
    """Where and how a run computes."""

    accelerator: str  # cpu or gpu
    precision: str  # Lightning's name of the precision
    layout: str  # Layout of a micro-batch: padded, grouped or packed
    strategy: str = "single"  # single, ddp or fsdp
    num_local: int = 1  # Number of processes of a node, each with one device
    num_nodes: int = 1  # Number of nodes
    attention: str | None = None  # Implementation of attention that a model uses; None before a model is set up
    chosen: str | None = None  # What was chosen by the memory of the GPUs and why, in one line; None: nothing

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
    count = ctypes.c_int(0)
    driver = _driver()
    if driver is None or driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def compute_capability() -> float:
    """Return the lowest compute capability of the visible GPUs, such as 8.6, from the driver's library."""
    driver, found = _driver(), list[float]()
    for index in range(count_gpus()):
        numbers = ctypes.c_int(0), ctypes.c_int(0)
        for number, attribute in zip(numbers, COMPUTE_CAPABILITY, strict=True):
            driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, index)
        found.append(numbers[0].value + numbers[1].value / 10)
    return min(found, default=0.0)


def gpu_memory_gib() -> float:
    """Return the lowest total memory of the visible GPUs in GiB, from the driver's library; 0 without a GPU."""
    driver, found = _driver(), list[float]()
    for index in range(count_gpus()):
        size = ctypes.c_size_t(0)
        if driver.cuDeviceTotalMem_v2(ctypes.byref(size), index) == 0:
            found.append(size.value / 2**30)
    return min(found, default=0.0)


def gpu_names() -> list[str]:
    """Return the names of the visible GPUs, from the driver's library."""
    driver, names = _driver(), list[str]()
    for index in range(count_gpus()):
        name = ctypes.create_string_buffer(256)
        if driver.cuDeviceGetName(name, len(name), index) == 0:
            names.append(name.value.decode())
    return names


def why_torch_has_no_gpu() -> str | None:
    """Return why the installed torch cannot use the GPUs that the driver reports, and the remedy, or None."""
    version = importlib.metadata.version("torch")
    built = _cuda_of_torch()
    if built is None:
        return f"torch {version} is a build for CPUs, install one for CUDA (pytorch.org has the command)"
    supported, driver = ctypes.c_int(0), _driver()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(supported)) != 0:
        return None
    major, minor = supported.value // 1000, supported.value % 1000 // 10
    if int(built.partition(".")[0]) > major:
        return (
            f"torch {version} is a build for CUDA {built} and the driver supports CUDA up to {major}.{minor}, update "
            f"the driver or install torch for CUDA {major}"
        )
    return None


def _driver() -> Any:
    """Return the library of the NVIDIA driver, or None."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _cuda_of_torch() -> str | None:
    """Return the version of CUDA that torch was built for, or None for a build without CUDA. torch is not imported."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    built = re.search(r"^cuda\b.*= *'([\d.]+)'", Path(found.origin).with_name("version.py").read_text(), re.MULTILINE)
    return None if built is None else built[1]
