"""The invariance certificate: one optimizer step of the run's own model and data, taken in every way that should not
matter, and how far loss and gradient move.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.artifact import Artifact
from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.config.schema import Config
from sftmix.distributed.device import Device
from sftmix.errors import ConfigError, Stopped
from sftmix.stages.context import RunContext, StageSpec
from sftmix.stages.inputs import check_hub
from sftmix.stages.invariance.variants import FIRST, ways_of
from sftmix.stages.plan import model_name, plan_run
from sftmix.stages.rank import run_stage_on_ranks

TOLERANCES = {"32-true": 1e-4, "bf16-mixed": 5e-2}  # of float32, sums in another order; of bfloat16, its rounding


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
    if config.trainer.num_nodes > 1:
        raise ConfigError(f"trainer.num_nodes={config.trainer.num_nodes}: mode=certify compares on one node")
    if config.trainer.precision == "auto":
        config.trainer.precision = "32-true"
    config.trainer.layout, config.trainer.progress_bar = "padded", False
    device, plan = plan_run(config)
    check_hub(config, plan.tunes_reference)
    context = RunContext(config)
    encoded = context.encoded(config.model)
    halves = "random halves"  # the certificate needs no reference
    if config.needs_split and not config.needs_confidence:
        halves = _halves_in_words(context)
    artifact = Artifact(Path(config.root), f"certificate-{model_name(config.model)}", plan.target.fields)
    folder = artifact.folder.with_name(f"{artifact.folder.name}.{os.getpid()}.partial")
    folder.mkdir(parents=True)
    try:
        rows = _compare(folder, context, device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    number = min(config.recipe.global_batch_size, len(encoded.train))
    said = (
        f"certificate of one optimizer step of {number} examples: {config.data.name}, {model_name(config.model)}, "
        f"{device.accelerator}, {device.precision}, dropout off, pairs of {halves}"
    )
    recipe = config.recipe
    said += "" if recipe.neftune_alpha is None else f", noise of alpha {recipe.neftune_alpha:g}"
    said += f", loss on prompts of weight {recipe.ntp.prompt_weight:g}" if recipe.ntp.prompt_weight else ""
    file = artifact.folder.with_suffix(".json")
    certificate = Certificate(file, rows, TOLERANCES[device.precision], said)
    write_json(file, {"said": said, "tolerance": certificate.tolerance, "holds": certificate.holds, "ways": rows})
    return certificate


def _halves_in_words(context: RunContext) -> str:
    """What the parts of the configuration's split are, which are there."""
    from sftmix.stages.split import split_examples, split_in_words

    split_examples(context, None)
    return split_in_words(context.config.split)


def _compare(folder: Path, context: RunContext, device: Device) -> list[dict[str, Any]]:
    from sftmix.training.step_gradient import gradient_difference

    rows: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    for way in ways_of(context.config, device):
        here = device._replace(strategy=way.strategy, num_local=way.num_local, num_nodes=1, layout=way.layout)
        part = folder / "first" if way == FIRST else folder / "other"
        part.mkdir(exist_ok=True)
        spec = StageSpec("certify", part, way._asdict())
        begin = time.monotonic()
        if code := run_stage_on_ranks(spec, context, here):
            raise Stopped(f"stopped after {len(rows) + 1} ways", code)
        losses = read_json(part / "losses.json")
        first, layout = first or losses, losses.pop("layout")
        name = way.name if layout == way.layout else f"{way.name} (the family cannot: {layout})"
        row: dict[str, Any] = {"way": name, "seconds": round(time.monotonic() - begin, 1), "losses": losses}
        for recipe in ("ntp", "sftmix"):
            row[f"{recipe}_loss"] = abs(losses[recipe] - first[recipe]) / abs(first[recipe])
            file = f"{recipe}.safetensors"
            row[f"{recipe}_gradient"] = gradient_difference(part / file, folder / "first" / file)
        rows.append(row)
        print(f"  {len(rows)} of {len(ways_of(context.config, device))}  {way.name}", flush=True)
    return rows
