"""Compare loss and gradient of one optimizer step over its variants, for the model and the data of a run."""

import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.artifact import Artifact
from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.config.schema import Config
from sftmix.distributed.device import Device, count_gpus, num_cores
from sftmix.errors import ConfigError, Stopped
from sftmix.stages.context import RunContext, StageSpec
from sftmix.stages.inputs import check_hub
from sftmix.stages.plan import plan_run
from sftmix.stages.rank import run_stage_on_ranks

# The largest relative differences that another order of float32 sums, or rounding to bfloat16, explains.
TOLERANCES = {"32-true": 1e-4, "bf16-mixed": 5e-2}
DIFFERENCES = ("ntp_loss", "ntp_gradient", "sftmix_loss", "sftmix_gradient")

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

    The dense loss has no chunks, so `trainer.loss=dense` omits the variant with small chunks. Quantized weights are not
    sharded, so `model.quantization` omits FSDP2.
    """
    single = tuple(v for v in ONE_PROCESS if v.chunk_bytes is None or config.trainer.loss == "fused")
    count = min(2, count_gpus() if device.accelerator == "gpu" else num_cores())
    several = (
        StepVariant(f"DDP, {count} processes", "ddp", count),
        StepVariant(f"DDP, {count} processes, micro-batches of a half", "ddp", count, num_micro_batches=2),
        StepVariant(f"FSDP2, {count} processes", "fsdp", count),
        StepVariant(f"FSDP2, {count} processes, packed, micro-batches of a half", "fsdp", count, "packed", 2),
        StepVariant(f"FSDP2, {count} processes, activation checkpointing", "fsdp", count, checkpointing=True),
    )
    variants = (*single, FSDP_OF_ONE, *(several if count > 1 else ()))
    return tuple(v for v in variants if v.strategy != "fsdp" or config.model.quantization is None)


class InvarianceReport(NamedTuple):
    """The result of the invariance check."""

    file: Path
    # For each variant its name, its losses, and the relative differences of loss and gradient from the first variant
    variants: list[dict[str, Any]]
    tolerance: float  # Largest difference that is accepted
    description: str  # Which step was computed

    @property
    def holds(self) -> bool:
        """Whether every difference is within the tolerance."""
        return all(variant[key] <= self.tolerance for variant in self.variants for key in DIFFERENCES)

    def table(self) -> str:
        """Return the report as lines for the terminal."""
        head = f"  {'variant':<58}{'NTP loss':>10}{'gradient':>10}{'SFTMix loss':>13}{'gradient':>10}"
        lines = [self.description, head]
        for variant in self.variants:
            values = [variant[key] for key in DIFFERENCES]
            mark = "" if all(value <= self.tolerance for value in values) else "  off"
            shown = f"{values[0]:>10.1e}{values[1]:>10.1e}{values[2]:>13.1e}{values[3]:>10.1e}"
            lines.append(f"  {variant['variant']:<58}{shown}{mark}")
        verdict = f"all within {self.tolerance:g}" if self.holds else f"not all within {self.tolerance:g}"
        return "\n".join([*lines, f"  {verdict}; relative to the first, {FIRST.name}", f"  written: {self.file}"])


def check_invariance(config: Config) -> InvarianceReport:
    """Compute the first step of a run in every variant, compare, and write the report below the root folder.

    The precision is float32 unless `trainer.precision` is set.

    Raises:
        Stopped: If a process of a variant fails or is interrupted.
    """
    if config.trainer.num_nodes > 1:
        raise ConfigError(f"trainer.num_nodes={config.trainer.num_nodes}: mode=certify runs on one node, expected 1")
    if config.trainer.precision == "auto":
        config.trainer.precision = "32-true"
    config.trainer.layout, config.trainer.progress_bar = "padded", False
    device, plan = plan_run(config)
    check_hub(config, plan.reads_reference)
    context, subsets = RunContext(config), "random subsets"
    if config.needs_split and not config.needs_confidence:
        from sftmix.stages.split import split_examples, split_in_words

        split_examples(context, None)  # refuses an empty subset
        subsets = split_in_words(config.split)
    num_examples = min(config.recipe.global_batch_size, len(context.encoded(config.model).train))
    description = (
        f"invariance check of one optimizer step of {num_examples} examples: {config.data.title}, "
        f"{config.model.title}, {device.accelerator}, {device.precision}, dropout off, "
        f"pairs of {subsets}"
    )
    recipe = config.recipe
    description += "" if recipe.neftune_alpha is None else f", noise of alpha {recipe.neftune_alpha:g}"
    description += f", loss on prompts of weight {recipe.ntp.prompt_weight:g}" if recipe.ntp.prompt_weight else ""
    artifact = Artifact(Path(config.root), f"invariance-{config.model.title}", plan.target.fields)
    folder = artifact.folder.with_name(f"{artifact.folder.name}.{os.getpid()}.partial")
    folder.mkdir(parents=True)
    try:
        variants = _compare(folder, context, device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    file = artifact.folder.with_suffix(".json")
    report = InvarianceReport(file, variants, TOLERANCES[device.precision], description)
    content = {"description": description, "tolerance": report.tolerance, "holds": report.holds, "variants": variants}
    write_json(file, content)
    return report


def _compare(folder: Path, context: RunContext, device: Device) -> list[dict[str, Any]]:
    """Compute each variant and return its losses and differences. Gradients are written below `folder`."""
    from sftmix.stages.invariance.gradients import gradient_difference

    found: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    variants = variants_of(context.config, device)
    for number, variant in enumerate(variants, 1):
        here = device._replace(
            strategy=variant.strategy, num_local=variant.num_local, num_nodes=1, layout=variant.layout
        )
        output = folder / "first" if variant == FIRST else folder / "other"
        output.mkdir(exist_ok=True)
        begin = time.monotonic()
        try:
            code = run_stage_on_ranks(StageSpec("certify", output, variant._asdict()), context, here)
        except Stopped as stopped:
            code = stopped.code
        if code:
            done = f"{number - 1} of {len(variants)} variants"
            raise Stopped(f"stopped after {done}, whose results are not saved", code, is_saved=False)
        losses = read_json(output / "losses.json")
        first, layout = first or losses, losses.pop("layout")
        name = variant.name if layout == variant.layout else f"{variant.name} (the family cannot: {layout})"
        result: dict[str, Any] = {"variant": name, "seconds": round(time.monotonic() - begin, 1), "losses": losses}
        for recipe in ("ntp", "sftmix"):
            result[f"{recipe}_loss"] = abs(losses[recipe] - first[recipe]) / abs(first[recipe])
            file = f"{recipe}.safetensors"
            result[f"{recipe}_gradient"] = gradient_difference(output / file, folder / "first" / file)
        found.append(result)
        print(f"  {number} of {len(variants)}  {variant.name}", flush=True)
    return found
