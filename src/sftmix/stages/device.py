"""Which device a run takes, found out without importing torch."""

import ctypes
import gc
import os
import shutil
from typing import NamedTuple

from sftmix.config import Trainer
from sftmix.errors import ConfigError


class Device(NamedTuple):
    """Where a run computes.

    Attributes:
        accelerator: cpu or gpu.
        precision: Lightning's name of it.
        layout: how sequences lie in the body: padded, grouped or packed.
    """

    accelerator: str
    precision: str
    layout: str

    @property
    def name(self) -> str:
        """What torch calls it."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    @property
    def can_flash(self) -> bool:
        """Whether flash attention can compute here: on a GPU in half precision."""
        return self.accelerator == "gpu" and self.precision == "bf16-mixed"

    def release(self) -> None:
        """Give a GPU's memory back between two stages."""
        if self.accelerator == "gpu":
            import torch

            gc.collect()
            torch.cuda.empty_cache()


def choose_device(trainer: Trainer) -> Device:
    """The device that the configuration means on this machine, and the layout that is fastest there.

    On a CPU, where attention computes the whole of a packed row, groups of like length were measured to be. On a GPU
    one packed row is taken to be, since matmuls want many tokens; that was not measured.

    Raises:
        ConfigError: a GPU, flash attention or compiled blocks are asked for and cannot be had.
    """
    gpus = count_gpus() if trainer.accelerator != "cpu" else 0
    if trainer.accelerator == "gpu" and not gpus:
        raise ConfigError("trainer.accelerator=gpu: no CUDA device is visible, expected at least one")
    accelerator = "gpu" if gpus else "cpu"
    precision, layout = ("bf16-mixed", "packed") if gpus else ("32-true", "grouped")
    device = Device(
        accelerator,
        precision if trainer.precision == "auto" else trainer.precision,
        layout if trainer.layout == "auto" else trainer.layout,
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
