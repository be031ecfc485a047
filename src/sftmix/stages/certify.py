"""The invariance certificate: one optimizer step of the run's own model and data, taken in every way that should not
matter, and how far loss and gradient move.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sftmix.artifacts import Artifact, read_json, write_json
from sftmix.config import Config
from sftmix.stages.device import Device, choose_device
from sftmix.stages.launch import launch
from sftmix.stages.materials import Materials
from sftmix.stages.plan import check_hub, check_inputs, make_plan, model_name, pin_revisions
from sftmix.stages.task import Task

WHOLE = 2**31  # tokens: all of a step in one micro-batch
TOLERANCES = {"32-true": 1e-5, "bf16-mixed": 5e-2}  # of float32, sums in another order; of bfloat16, its rounding


class Way(NamedTuple):
    """A way of taking a step.

    Attributes:
        name: what people call it.
        strategy: single, ddp or fsdp.
        num_local: processes.
        layout: padded, grouped or packed.
        parts: micro-batches that the step's tokens are cut into, about.
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


FIRST = Way("one process, one padded micro-batch")
WAYS = (
    FIRST,
    Way("micro-batches of a half", parts=2),
    Way("micro-batches of a pair", parts=WHOLE),
    Way("loss in chunks of 8 rows", chunk_bytes=1),
    Way("grouped by length", layout="grouped"),
    Way("packed into one row", layout="packed"),
    Way("activation checkpointing", checkpointing=True),
)
FSDP_ALONE = Way("FSDP2, a mesh of one", "fsdp")


def ways_of(config: Config, device: Device) -> tuple[Way, ...]:
    """The ways that can be taken on a device: those of several processes where it has more than one."""
    from sftmix.stages.device import count_gpus, num_cores

    number = min(2, count_gpus() if device.accelerator == "gpu" else num_cores())
    several = (
        Way(f"DDP, {number} processes", "ddp", number),
        Way(f"DDP, {number} processes, micro-batches of a half", "ddp", number, parts=2),
        Way(f"FSDP2, {number} processes", "fsdp", number),
        Way(f"FSDP2, {number} processes, packed, micro-batches of a half", "fsdp", number, "packed", 2),
        Way(f"FSDP2, {number} processes, activation checkpointing", "fsdp", number, checkpointing=True),
    )
    return (*WAYS, FSDP_ALONE, *(several if number > 1 else ()))


class Certificate(NamedTuple):
    """What was found.

    Attributes:
        file: where it is written.
        rows: of each way, its name and, for NTP and SFTMix, the relative difference of loss and gradient.
        tolerance: the most that they may differ.
        said: what the step is of.
    """

    file: Path
    rows: list[dict[str, Any]]
    tolerance: float
    said: str

    @property
    def holds(self) -> bool:
        """Whether every difference is within the tolerance."""
        return all(row[key] <= self.tolerance for row in self.rows for key in DIFFERENCES)

    def table(self) -> str:
        """As lines for the terminal."""
        head = f"  {'way':<58}{'NTP loss':>10}{'gradient':>10}{'SFTMix loss':>13}{'gradient':>10}"
        lines = [self.said, head]
        for row in self.rows:
            values = [row[key] for key in DIFFERENCES]
            marks = "" if all(value <= self.tolerance for value in values) else "  off"
            shown = f"{values[0]:>10.1e}{values[1]:>10.1e}{values[2]:>13.1e}{values[3]:>10.1e}"
            lines.append(f"  {row['way']:<58}{shown}{marks}")
        verdict = f"all within {self.tolerance:g}" if self.holds else f"not all within {self.tolerance:g}"
        return "\n".join([*lines, f"  {verdict}; relative to the first, {FIRST.name}", f"  written: {self.file}"])


DIFFERENCES = ("ntp_loss", "ntp_gradient", "sftmix_loss", "sftmix_gradient")


def certify(config: Config) -> Certificate:
    """Take the first step of a configuration's run in every way, and compare.

    It computes in float32 unless `trainer.precision` says otherwise.

    Raises:
        InputError: anything that was given is wrong.
    """
    if config.trainer.precision == "auto":
        config.trainer.precision = "32-true"
    config.trainer.layout, config.trainer.progress_bar = "padded", False
    check_inputs(config)
    pin_revisions(config)
    device = choose_device(config.trainer)
    plan = make_plan(config, device)
    check_hub(config, plan)
    materials = Materials(config)
    encoded = materials.encoded(config.model)
    artifact = Artifact(Path(config.root), f"certificate-{model_name(config.model)}", plan.target.fields)
    folder = artifact.folder.with_name(f"{artifact.folder.name}.{os.getpid()}.partial")
    folder.mkdir(parents=True)
    try:
        rows = _compare(folder, materials, device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    number = min(config.recipe.global_batch_size, len(encoded.train))
    said = (
        f"certificate of one optimizer step of {number} examples: {config.data.name}, {model_name(config.model)}, "
        f"{device.accelerator}, {device.precision}, dropout off, pairs of random halves"
    )
    file = artifact.folder.with_suffix(".json")
    certificate = Certificate(file, rows, TOLERANCES[device.precision], said)
    write_json(file, {"said": said, "tolerance": certificate.tolerance, "holds": certificate.holds, "ways": rows})
    return certificate


def _compare(folder: Path, materials: Materials, device: Device) -> list[dict[str, Any]]:
    from sftmix.stages.work import work
    from sftmix.stages.worker import Worker
    from sftmix.training.certificate import gradient_difference

    rows: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    for way in ways_of(materials.config, device):
        here = device._replace(strategy=way.strategy, num_local=way.num_local, num_nodes=1, layout=way.layout)
        part = folder / "first" if way == FIRST else folder / "other"
        part.mkdir(exist_ok=True)
        task = Task("certify", part, way._asdict())
        begin = time.monotonic()
        if here.is_apart:
            launch(task, materials.config, here)
        else:
            work(task, materials, Worker(here))
        losses = read_json(part / "losses.json")
        first = first or losses
        row: dict[str, Any] = {"way": way.name, "seconds": round(time.monotonic() - begin, 1), "losses": losses}
        for recipe in ("ntp", "sftmix"):
            row[f"{recipe}_loss"] = abs(losses[recipe] - first[recipe]) / abs(first[recipe])
            name = f"{recipe}.safetensors"
            row[f"{recipe}_gradient"] = gradient_difference(part / name, folder / "first" / name)
        rows.append(row)
        print(f"  {len(rows)} of {len(ways_of(materials.config, device))}  {way.name}", flush=True)
    return rows


def random_halves(number: int, seed: int) -> list[bool]:
    """Halves at random, in the place of those by confidence: the certificate needs no reference."""
    return (np.random.default_rng(seed).permutation(number) % 2 == 0).tolist()
