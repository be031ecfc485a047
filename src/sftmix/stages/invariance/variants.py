"""The variants in which the invariance check computes one optimizer step."""

from typing import NamedTuple

import numpy as np

from sftmix.config.schema import Config
from sftmix.distributed.device import Device, count_gpus, num_cores

AS_MANY_AS_PAIRS = 2**31


class StepVariant(NamedTuple):
    """How one optimizer step is computed."""

    name: str
    strategy: str = "single"  # single, ddp or fsdp
    num_local: int = 1  # Number of processes
    layout: str = "padded"  # padded, grouped or packed
    num_micro_batches: int = 1  # Approximate number of micro-batches of each process. 1: the micro-batches of the run.
    chunk_bytes: int | None = None  # Chunk size of the fused loss. None: as in a run.
    checkpointing: bool = False  # Whether activations are recomputed in the backward pass


FIRST = StepVariant("one process, padded")
ONE_PROCESS = (
    FIRST,
    StepVariant("micro-batches of a half", num_micro_batches=2),
    StepVariant("micro-batches of a pair", num_micro_batches=AS_MANY_AS_PAIRS),
    StepVariant("loss in chunks of 8 tokens", chunk_bytes=1),
    StepVariant("grouped by length", layout="grouped"),
    StepVariant("packed into one sequence", layout="packed"),
    StepVariant("activation checkpointing", checkpointing=True),
)
FSDP_OF_ONE = StepVariant("FSDP2, one process", "fsdp")


def variants_of(config: Config, device: Device) -> tuple[StepVariant, ...]:
    """Return the variants that a device can compute. Several processes need more than one GPU or core.

    The dense loss has no chunks, so `trainer.loss=dense` omits the variant with small chunks.
    """
    single = tuple(v for v in ONE_PROCESS if v.chunk_bytes is None or config.trainer.loss == "fused")
    count = min(2, count_gpus() if device.accelerator == "gpu" else num_cores())
    if count == 1:
        return (*single, FSDP_OF_ONE)
    return (
        *single,
        FSDP_OF_ONE,
        StepVariant(f"DDP, {count} processes", "ddp", count),
        StepVariant(f"DDP, {count} processes, micro-batches of a half", "ddp", count, num_micro_batches=2),
        StepVariant(f"FSDP2, {count} processes", "fsdp", count),
        StepVariant(f"FSDP2, {count} processes, packed, micro-batches of a half", "fsdp", count, "packed", 2),
        StepVariant(f"FSDP2, {count} processes, activation checkpointing", "fsdp", count, checkpointing=True),
    )


def random_subsets(num_examples: int, seed: int) -> list[bool | None]:
    """Return a random split. The invariance check needs no reference, so it does not use confidences."""
    return (np.random.default_rng(seed).permutation(num_examples) % 2 == 0).tolist()
