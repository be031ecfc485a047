"""Which device a run takes, found out without importing torch."""

import ctypes
import gc
import os
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

    def release(self) -> None:
        """Give a GPU's memory back between two stages."""
        if self.accelerator == "gpu":
            import torch

            gc.collect()
            torch.cuda.empty_cache()


def choose_device(trainer: Trainer) -> Device:
    """The device that the configuration means on this machine, and the layout that is fastest there.

    On a GPU that is one packed row: matmuls want many tokens, and its attention can leave out what a mask hides. On a
    CPU, where attention computes the whole row, it is groups of like length.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    gpus = count_gpus() if trainer.accelerator != "cpu" else 0
    if trainer.accelerator == "gpu" and not gpus:
        raise ConfigError("trainer.accelerator=gpu: no CUDA device is visible, expected at least one")
    accelerator = "gpu" if gpus else "cpu"
    precision, layout = ("bf16-mixed", "packed") if gpus else ("32-true", "grouped")
    return Device(
        accelerator,
        precision if trainer.precision == "auto" else trainer.precision,
        layout if trainer.layout == "auto" else trainer.layout,
    )


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
