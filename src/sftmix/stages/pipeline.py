"""The pipeline (section 3.3, Figure 2): reference -> confidence -> target.

Everything that can be checked is checked before the first stage starts. A stage whose artifact is complete is skipped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sftmix.artifacts.artifact import Artifact, drop_checkpoints, forget_drops, making, note_drop, tidy
from sftmix.artifacts.manifest import forget_verified, verify, verify_inside
from sftmix.config.schema import Config
from sftmix.distributed.device import Device, gpu_memory_gib
from sftmix.errors import InputError, Stopped
from sftmix.stages.inputs import check_hub
from sftmix.stages.plan import Plan, plan_run
from sftmix.stages.rank import run_stage_on_ranks

if TYPE_CHECKING:
    from sftmix.stages.context import RunContext


@dataclass(frozen=True)
class PipelineRun:
    """A run of the pipeline: its artifacts, its config and data, and its devices."""

    config: Config
    plan: Plan
    context: "RunContext"
    device: Device

    @property
    def drops_checkpoints(self) -> bool:
        """Whether this process removes the checkpoints of the reference after they were scored."""
        return not self.config.reference.keep_checkpoints and self.config.trainer.node_rank == 0


def run_pipeline(config: Config) -> Plan:
    """Run the stages of a config that are not complete. With mode=confidence, the target is not tuned.

    Raises:
        InputError: If an input is wrong, or a file of an artifact is damaged.
        Stopped: If a signal requested a stop while a stage ran.
    """
    forget_verified()
    device, plan = plan_run(config)
    stages = {"reference": plan.reference, "confidence": plan.confidence, "target": plan.target}
    artifacts = {title: artifact for title, artifact in stages.items() if artifact is not None}
    if config.trainer.node_rank == 0:  # finish what a killed command has left in complete artifacts
        if plan.reference is not None and config.reference.keep_checkpoints:
            forget_drops(plan.reference.folder)
        for artifact in artifacts.values():
            tidy(artifact.folder)
    last = plan.confidence if config.mode == "confidence" else plan.target
    if last is not None and last.is_complete:
        for title, artifact in artifacts.items():
            _report_complete(title, artifact)
        return plan
    check_hub(config, plan.reads_reference)
    from sftmix.stages.checks import prepare_data  # imports numpy, after all checks that do not need it
    from sftmix.stages.context import RunContext
    from sftmix.stages.memory_choice import choose_memory_settings

    context = RunContext(config)
    prepare_data(plan, context)
    chosen = None
    if device.accelerator == "gpu":
        models = [config.model, *([config.reference.model] if plan.tunes_reference else [])]
        device, chosen = choose_memory_settings(config, device, models, gpu_memory_gib())
    print(f"device      {device.in_words}", flush=True)
    if chosen is not None:
        print(f"memory      {chosen}", flush=True)
    run = PipelineRun(config, plan, context, device)
    checkpoints = make_reference(run)
    scores = make_confidence(run, checkpoints)
    if config.mode != "confidence":
        make_target(run, scores, checkpoints)
    return plan


def make_reference(run: PipelineRun) -> list[Path]:
    """Tune the reference if its checkpoints have to score, and return the checkpoints (Step 1).

    The list is empty if no checkpoint is read: an untuned model scores (confidence.from=base), or nothing is scored.
    """
    reference, confidence = run.plan.reference, run.plan.confidence
    if reference is None:
        return [Path(folder) for folder in run.config.confidence.checkpoints or []]
    if confidence is not None and confidence.is_complete:
        _report_complete("reference", reference)
        return []
    from sftmix.stages.reference import checkpoint_folders, has_checkpoints

    def has_all(folder: Path) -> bool:
        return has_checkpoints(folder, run.config.reference.num_checkpoints)

    missing = "its checkpoints are missing (reference.keep_checkpoints=true keeps them)"
    missing = missing if confidence is None else "its checkpoints and their scores are missing"
    again = f", again: {missing}" if reference.is_complete else ""
    what = f"tuning {run.config.reference.model.title} by next-token prediction{again}"
    _make(run, "reference", "reference", reference, what, is_usable=has_all)
    checkpoints = checkpoint_folders(reference.folder)
    for checkpoint in checkpoints:
        verify(reference.folder, checkpoint.relative_to(reference.folder).as_posix())
    return checkpoints


def make_confidence(run: PipelineRun, checkpoints: list[Path]) -> Path | None:
    """Score the examples under the checkpoints, and return the file of the scores (section 3.1).

    The file may also be given, or complete. None is returned if the target needs no scores.
    """
    config, reference, confidence = run.config, run.plan.reference, run.plan.confidence
    if confidence is None:
        if config.splits_after_first_epoch:
            _print("confidence", "by the target's own losses in its first epoch")
        if config.confidence.path is None:
            return None
        _print("confidence", f"given: {config.confidence.path}")
        return Path(config.confidence.path)
    is_new = not confidence.is_complete
    if is_new and reference is not None and run.drops_checkpoints:
        note_drop(reference.folder, confidence.folder.name)
    what = f"scoring under {len(checkpoints)} checkpoints"
    if run.plan.scores_base:
        model = config.reference.model
        is_random = model.init is not None
        what = f"scoring under {model.title}, untuned" + (", whose embedded weights are random" if is_random else "")
    _make(run, "confidence", "confidence", confidence, what, inputs=tuple(checkpoints))
    if is_new and reference is not None and run.drops_checkpoints:
        drop_checkpoints(reference.folder)
    scores = confidence.folder / "confidence.parquet"
    verify_inside(scores)
    return scores


def make_target(run: PipelineRun, scores: Path | None, checkpoints: list[Path]) -> None:
    """Tune the target: by Mixup on the split examples, or by NTP on all examples (Steps 2 and 3).

    With recipe=checkpoint_average, the target is the mean of the checkpoints.
    """
    config = run.config
    if config.averages_checkpoints:
        what = f"averaging {len(checkpoints)} checkpoints of {config.model.title}"
        _make(run, "target", "average", run.plan.target, what, inputs=tuple(checkpoints))
        return
    how = "by next-token prediction" if config.is_baseline else f"with recipe {config.recipe.name}"
    stage, inputs = ("target" if config.needs_split else "ntp"), (() if scores is None else (scores,))
    _make(run, "target", stage, run.plan.target, f"tuning {config.model.title} {how}", inputs=inputs)


def _make(
    run: PipelineRun,
    title: str,
    stage: str,
    artifact: Artifact,
    what: str,
    *,
    inputs: tuple[Path, ...] = (),
    is_usable: Callable[[Path], bool] = lambda _: True,
) -> None:
    """Make the artifact of a stage, unless it is complete. On other nodes than the first, take part in making it.

    Args:
        title: Name of the stage for the terminal.
        stage: Name of the stage for `StageSpec`.
        what: What the stage does, for the terminal.
        inputs: Paths that the stage reads.
        is_usable: Whether a complete artifact can be used. If not, it is made again.
    """
    if artifact.is_complete and is_usable(artifact.folder):
        _report_complete(title, artifact)
        return
    _print(title, what)
    from sftmix.stages.context import StageSpec

    spec, trainer = StageSpec(stage, artifact.partial, artifact.fields, inputs), run.config.trainer
    stopped = 0
    if trainer.node_rank > 0:
        stopped = run_stage_on_ranks(spec, run.context, run.device)
        deadline = time.monotonic() + trainer.rdzv_timeout
        while not (artifact.is_complete and is_usable(artifact.folder)):
            if time.monotonic() > deadline:
                missing = f"no {artifact.folder.name} in it"
                raise InputError(f"root={artifact.root}: {missing}: do all nodes share this folder?")
            time.sleep(0.1)
    else:
        with making(artifact, resume=True, usable=is_usable) as folder:
            if folder is not None:
                stopped = run_stage_on_ranks(spec, run.context, run.device)
        tidy(artifact.folder)  # training states are removed when the artifact is complete
    _print(title, f"written: {artifact.folder}")
    if stopped and title != "target":  # the stop came when the stage was already complete
        raise Stopped(f"stopped after stage {stage}, which is complete", stopped)


def _report_complete(title: str, artifact: Artifact) -> None:
    """Check a complete artifact and print where it is."""
    if artifact.is_complete:
        artifact.check()
        _print(title, f"already there: {artifact.folder}")


def _print(title: str, what: str) -> None:
    print(f"{title:<12}{what}", flush=True)
