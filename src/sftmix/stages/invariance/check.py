"""Compare loss and gradient of one optimizer step over all variants, for the model and the data of a run."""

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
from sftmix.stages.invariance.variants import FIRST, variants_of
from sftmix.stages.plan import plan_run
from sftmix.stages.rank import run_stage_on_ranks

# The largest relative differences that another order of float32 sums, or rounding to bfloat16, explains.
TOLERANCES = {"32-true": 1e-4, "bf16-mixed": 5e-2}
DIFFERENCES = ("ntp_loss", "ntp_gradient", "sftmix_loss", "sftmix_gradient")


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
        InputError: If the data, the model or the config is not valid.
        Stopped: If a process of a variant fails or is interrupted.
    """
    if config.trainer.num_nodes > 1:
        raise ConfigError(f"trainer.num_nodes={config.trainer.num_nodes}: mode=certify runs on one node, expected 1")
    if config.trainer.precision == "auto":
        config.trainer.precision = "32-true"
    config.trainer.layout, config.trainer.progress_bar = "padded", False
    device, plan = plan_run(config)
    check_hub(config, plan.tunes_reference)
    context = RunContext(config)
    num_examples = min(config.recipe.global_batch_size, len(context.encoded(config.model).train))
    description = (
        f"invariance check of one optimizer step of {num_examples} examples: {config.data.title}, "
        f"{config.model.title}, {device.accelerator}, {device.precision}, dropout off, "
        f"pairs of {_subsets_in_words(context)}"
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


def _subsets_in_words(context: RunContext) -> str:
    """Describe the subsets that are paired: the split of the run, unless the split needs a reference."""
    from sftmix.stages.split import split_examples, split_in_words

    if not context.config.needs_split or context.config.needs_confidence:
        return "random subsets"
    split_examples(context, None)
    return split_in_words(context.config.split)


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
