"""Which devices a run takes, found out without importing torch."""

import ctypes
import gc
import os
import shutil
from typing import NamedTuple

from sftmix.config.schema import Trainer
from sftmix.errors import ConfigError


class Device(NamedTuple):
    """Where a run computes.

    Attributes:
        accelerator: cpu or gpu.
        precision: Lightning's name of it.
        layout: how sequences lie in the body: padded, grouped or packed.
        strategy: single, ddp or fsdp.
        num_local: processes of a node, each with a device of its own.
        num_nodes: nodes.
    """

    accelerator: str
    precision: str
    layout: str
    strategy: str = "single"
    num_local: int = 1
    num_nodes: int = 1

    @property
    def name(self) -> str:
        """What torch calls it."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    @property
    def world_size(self) -> int:
        """Processes over all nodes."""
        return self.num_local * self.num_nodes

    @property
    def in_words(self) -> str:
        """What people call it."""
        count = self.num_local
        where = f"{count} GPUs" if count > 1 else "one GPU"
        if self.accelerator == "cpu":
            where = f"the CPU, {count} processes" if count > 1 else "the CPU"
        nodes = f" on each of {self.num_nodes} nodes" if self.num_nodes > 1 else ""
        how = {"single": "", "ddp": ", DDP", "fsdp": ", FSDP2"}[self.strategy]
        return f"{where}{nodes}{how}, precision {self.precision}"

    @property
    def is_apart(self) -> bool:
        """Whether each stage has processes of its own: on any GPU, so that its memory comes back, and for several."""
        return self.accelerator == "gpu" or self.strategy != "single"

    @property
    def can_flash(self) -> bool:
        """Whether flash attention can compute here: on a GPU in half precision."""
        return self.accelerator == "gpu" and self.precision == "bf16-mixed"

    def release(self) -> None:
        """Give a GPU's memory back between two checkpoints."""
        if self.accelerator == "gpu":
            import torch

            gc.collect()
            torch.cuda.empty_cache()


def choose_device(trainer: Trainer) -> Device:
    """The devices that the configuration means on this machine, and the layout that is fastest there.

    On a CPU, where attention computes the whole of a packed row, groups of like length were measured to be. On a GPU
    one packed row is taken to be, since matmuls want many tokens; that was not measured. Ranks that share a model run
    its body equally often, which groups do not.

    Raises:
        ConfigError: a GPU, several of them, flash attention or compiled blocks are asked for and cannot be had.
    """
    gpus = count_gpus() if trainer.accelerator != "cpu" else 0
    if trainer.accelerator == "gpu" and not gpus:
        raise ConfigError("trainer.accelerator=gpu: no CUDA device is visible, expected at least one")
    accelerator = "gpu" if gpus else "cpu"
    strategy, num_local = _strategy(trainer, gpus)
    precision, layout = ("bf16-mixed", "packed") if gpus else ("32-true", "grouped")
    if strategy == "fsdp" and layout == "grouped":
        layout = "padded"
    device = Device(
        accelerator,
        precision if trainer.precision == "auto" else trainer.precision,
        layout if trainer.layout == "auto" else trainer.layout,
        strategy,
        num_local,
        trainer.num_nodes,
    )
    if device.layout == "grouped" and strategy == "fsdp" and device.world_size > 1:
        raise ConfigError(
            "trainer.layout=grouped: processes that share a model must run it equally often, and groups differ; choose "
            "padded or packed"
        )
    if not trainer.accumulate_whole and strategy != "fsdp":
        raise ConfigError(
            f"trainer.accumulate_whole=false: it is of FSDP2, and this is {strategy}, which holds gradients whole"
        )
    if trainer.attention == "flash_attention_2" and not device.can_flash:
        raise ConfigError(
            f"trainer.attention=flash_attention_2: it needs a GPU and precision bf16-mixed, not the {accelerator} and "
            f"{device.precision}"
        )
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if trainer.compile and accelerator == "cpu" and not any(map(shutil.which, compilers)):
        raise ConfigError("trainer.compile=true: on the CPU it needs a C++ compiler, and there is no g++ or clang++")
    return device


def _strategy(trainer: Trainer, gpus: int) -> tuple[str, int]:
    """The strategy, and the processes of a node."""
    there = gpus or num_cores()
    if trainer.devices is not None and trainer.devices > there:
        what = "visible GPUs" if gpus else "CPU cores"
        raise ConfigError(f"trainer.devices={trainer.devices}: there are {there} {what}")
    if trainer.strategy == "single":
        return "single", 1
    if trainer.strategy == "auto":
        several = (trainer.devices or gpus) > 1 or trainer.num_nodes > 1
        return ("fsdp", trainer.devices or gpus or 1) if several else ("single", 1)
    if trainer.devices is None and not gpus:
        raise ConfigError(f"trainer.devices has no value: on a CPU trainer={trainer.strategy} needs trainer.devices=2")
    return trainer.strategy, trainer.devices or gpus


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name of the visible devices: numbers, or what stands there already."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    number = count_gpus()
    return named[:number] if named else [str(k) for k in range(number)]


def count_gpus() -> int:
    """Visible CUDA devices, by the driver's own library; 0 where there is none."""
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
