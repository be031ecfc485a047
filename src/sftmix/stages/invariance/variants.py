"""The ways of taking one optimizer step that must not matter, for the certificate."""

from typing import NamedTuple

import numpy as np

from sftmix.config.schema import Config
from sftmix.distributed.device import Device, count_gpus, num_cores

PAIRS = 2**31  # parts: as many as there are pairs


class Way(NamedTuple):
    """A way of taking a step.

    Attributes:
        name: what people call it.
        strategy: single, ddp or fsdp.
        num_local: processes.
        layout: padded, grouped or packed.
        parts: micro-batches that a process's tokens are cut into, about; 1: the run's own micro-batches.
        chunk_bytes: of the loss's chunks; None: as in a run.
        checkpointing: whether blocks compute again in the backward.
    """

    name: str
    strategy: str = "single"
    num_local: int = 1
    layout: str = "padded"
    parts: int = 1
    chunk_bytes: int | None = None
    checkpointing: bool = False


FIRST = Way("one process, padded")
WAYS = (
    FIRST,
    Way("micro-batches of a half", parts=2),
    Way("micro-batches of a pair", parts=PAIRS),
    Way("loss in chunks of 8 rows", chunk_bytes=1),
    Way("grouped by length", layout="grouped"),
    Way("packed into one row", layout="packed"),
    Way("activation checkpointing", checkpointing=True),
)
FSDP_ALONE = Way("FSDP2, a mesh of one", "fsdp")


def ways_of(config: Config, device: Device) -> tuple[Way, ...]:
    """The ways that can be taken on a device: those of several processes where it has more than one."""
    number = min(2, count_gpus() if device.accelerator == "gpu" else num_cores())
    several = (
        Way(f"DDP, {number} processes", "ddp", number),
        Way(f"DDP, {number} processes, micro-batches of a half", "ddp", number, parts=2),
        Way(f"FSDP2, {number} processes", "fsdp", number),
        Way(f"FSDP2, {number} processes, packed, micro-batches of a half", "fsdp", number, "packed", 2),
        Way(f"FSDP2, {number} processes, activation checkpointing", "fsdp", number, checkpointing=True),
    )
    return (*WAYS, FSDP_ALONE, *(several if number > 1 else ()))


def random_halves(number: int, seed: int) -> list[bool | None]:
    """Halves at random, in the place of those by confidence: the certificate needs no reference."""
    return (np.random.default_rng(seed).permutation(number) % 2 == 0).tolist()
