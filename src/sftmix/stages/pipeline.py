"""A run of the recipe: its stages in order, what is there skipped, everything that can be checked checked first."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sftmix.artifacts.artifact import Artifact, drop_checkpoints, forget_drops, making, note_drop, tidy
from sftmix.artifacts.manifest import forget_verified, verify, verify_inside
from sftmix.config.schema import Config, Model
from sftmix.distributed.device import Device
from sftmix.errors import InputError, Stopped
from sftmix.models.lora import is_adapter
from sftmix.stages.context import EncodedData, RunContext, StageSpec
from sftmix.stages.inputs import check_hub, checkpoint_base
from sftmix.stages.plan import Plan, model_name, plan_run
from sftmix.stages.prepare import said_of
from sftmix.stages.rank import run_stage_on_ranks
from sftmix.terminal import counted, visible


def run_pipeline(config: Config) -> Plan:
    """Run the stages of a configuration that are not there yet; under mode=confidence not the target.

    Raises:
        InputError: If anything that was given is wrong, or a file of an artifact is damaged.
        Stopped: If a signal asked for a stop.
    """
    from sftmix.distributed.stopping import StopRequest

    with StopRequest(["SIGTERM", config.trainer.stop_signal]).listening():
        return _run(config)


def _run(config: Config) -> Plan:
    forget_verified()
    device, plan = plan_run(config)
    last = plan.confidence if config.mode == "confidence" else plan.target
    assert last is not None
    if config.trainer.node_rank == 0:
        if plan.reference is not None and config.reference.keep_checkpoints:
            forget_drops(plan.reference.folder)
        for _, artifact in _stages(plan):
            tidy(artifact.folder)
    if last.is_complete:
        for name, artifact in _stages(plan):
            if artifact.is_complete:
                artifact.check()
                _say(name, f"already there: {artifact.folder}")
        return plan
    check_hub(config, plan.tunes_reference)
    context = RunContext(config)
    _prepare(plan, context)
    print(f"device      {device.in_words}", flush=True)
    if config.needs_split:
        _run_split_recipe(plan, context, device)
    else:
        _run_ntp("ntp", plan.target, context, device)
    return plan


def _stages(plan: Plan) -> list[tuple[str, Artifact]]:
    stages = (("reference", plan.reference), ("confidence", plan.confidence), ("target", plan.target))
    return [(name, artifact) for name, artifact in stages if artifact is not None]


def _prepare(plan: Plan, context: RunContext) -> None:
    """Read, verify and encode everything that the stages need, so that errors come before training starts."""
    config = context.config
    models = [config.model, *([config.reference.model] if plan.tunes_reference else [])]
    given = [*(m.path for m in models), config.confidence.path, *(config.confidence.checkpoints or [])]
    for path in dict.fromkeys(str(path) for path in given if path is not None):
        if Path(path).exists():
            verify_inside(Path(path))
    encoded = context.encoded(config.model)
    print(f"data        {config.data.name}, as the target's tokenizer sees it", flush=True)
    print(visible(said_of(config.data, context.reading)), visible(encoded.census.table()), sep="\n", flush=True)
    print(f"  {len(encoded.train):>9,} to train on, {len(encoded.val):,} held out", flush=True)
    for note in encoded.encoder.notes:
        print(f"            chat template: {visible(note)}", flush=True)
    if not encoded.val:
        print("            nothing is held out, so no held-out loss: data.val_fraction=0.1 takes a tenth", flush=True)
    if config.trains_on_half and len(encoded.train) < 4:
        raise InputError(
            f"{counted(len(encoded.train), 'example')} to train on, expected at least 4 to train on half of them"
        )
    if config.needs_split and not config.needs_confidence:
        _check_split(context)
    elif config.confidence.path is not None:
        from sftmix.stages.split import read_split

        read_split(Path(config.confidence.path), encoded.train.ids, config.confidence.use, is_given=True)
    elif plan.tunes_reference:
        _check_reference(encoded, context)
    if plan.confidence is not None and not plan.confidence.is_complete:
        _check_weights(plan, encoded, context)


def _check_weights(plan: Plan, target: EncodedData, context: RunContext) -> None:
    """Refuse models that are read only after another stage, before that stage starts.

    Raises:
        InputError: If weights do not fit their model, or if the target cannot be tuned or saved.
    """
    from sftmix.models.export import check_saving
    from sftmix.models.language_model import SFTMixLM
    from sftmix.models.loading import check_weights

    config = context.config
    for folder in config.confidence.checkpoints or []:
        if is_adapter(Path(folder)):
            check_weights(*checkpoint_base(config, Path(folder)))
        else:
            check_weights(folder, None)
    model, reference = config.model, config.reference.model
    is_read_first = plan.tunes_reference and (model.path, model.revision) == (reference.path, reference.revision)
    if config.mode != "confidence" and model.path is not None and not is_read_first:
        lm = SFTMixLM(context.causal_lm(model))
        check_saving(lm.causal_lm, target.tokenizer, target.encoder.end_token_id)


def _check_split(context: RunContext) -> None:
    """Refuse a split with nothing in one part, and say what the parts are."""
    from sftmix.stages.split import split_examples, split_in_words

    halves = split_examples(context, None).train
    sizes = f"{counted(halves.count(True), 'example')} play the confident part, {halves.count(False):,} the other"
    _say("split", f"{split_in_words(context.config.split)}: {sizes}")


def _check_reference(target: EncodedData, context: RunContext) -> None:
    """Refuse a reference that cannot be tuned or cannot score, before it is tuned."""
    from sftmix.stages.reference import num_steps

    config = context.config
    encoded = context.encoded(config.reference.model)
    _check_both_keep(target, encoded, config.reference.model)
    num_examples, num_checkpoints = len(encoded.train), config.reference.num_checkpoints
    steps = num_steps(config, num_examples)
    if steps < num_checkpoints:
        key = "data" if num_checkpoints == config.data.num_checkpoints else "reference"
        more_epochs = -(-num_checkpoints * config.data.epochs // steps)
        raise InputError(
            f"reference.num_checkpoints={num_checkpoints}: the reference takes {counted(steps, 'step')} "
            f"({counted(num_examples, 'example')}, {counted(config.data.epochs, 'epoch')}, steps of "
            f"{config.recipe.global_batch_size}), expected at least as many steps as checkpoints: set "
            f"{key}.num_checkpoints={steps}, or more steps by data.epochs={more_epochs}"
        )


def _check_both_keep(target: EncodedData, reference: EncodedData, model: Model) -> None:
    """Refuse a reference whose tokenizer leaves too few of the target's examples, before it is tuned."""
    from sftmix.stages.split import LEAST_COVERAGE

    covered = int(np.isin(target.train.lines, reference.train.lines).sum())
    if covered < LEAST_COVERAGE * len(target.train):
        raise InputError(
            f"reference.model={model_name(model)}: its tokenizer leaves {covered} of the target's {len(target.train)} "
            f"examples (the others are longer than data.max_seq_len), expected at least {LEAST_COVERAGE:.0%}"
        )


def _run_split_recipe(plan: Plan, context: RunContext, device: Device) -> None:
    config = context.config
    inputs: tuple[Path, ...] = ()
    if config.needs_confidence:
        inputs = (_scores(plan, context, device),)
    if config.mode == "confidence":
        return
    _say("target", f"tuning {model_name(config.model)} with recipe {config.recipe.name}")
    _make("target", plan.target, context, device, inputs=inputs)
    _say("target", f"written: {plan.target.folder}")


def _scores(plan: Plan, context: RunContext, device: Device) -> Path:
    """The confidence file that is given, is there, or is made."""
    config = context.config
    if plan.confidence is None:
        scores = Path(str(config.confidence.path))
        _say("confidence", f"given: {scores}")
    else:
        scores = plan.confidence.folder / "confidence.parquet"
        if plan.confidence.is_complete:
            for name, artifact in _stages(plan)[:-1]:
                if artifact.is_complete:
                    artifact.check()
                    _say(name, f"already there: {artifact.folder}")
        else:
            _run_confidence(plan.confidence, plan.reference, context, device)
    verify_inside(scores)
    return scores


def _run_confidence(artifact: Artifact, reference: Artifact | None, context: RunContext, device: Device) -> None:
    from sftmix.stages.reference import checkpoint_folders

    config = context.config
    drops = reference is not None and not config.reference.keep_checkpoints and config.trainer.node_rank == 0
    if reference is None:
        folders = [Path(folder) for folder in config.confidence.checkpoints or []]
    else:
        _run_ntp("reference", reference, context, device)
        folders = checkpoint_folders(reference.folder)
        for folder in folders:
            verify(reference.folder, folder.relative_to(reference.folder).as_posix())
        if drops:
            note_drop(reference.folder, artifact.folder.name)
    _say("confidence", f"scoring under {len(folders)} checkpoints")
    _make("confidence", artifact, context, device, inputs=tuple(folders))
    _say("confidence", f"written: {artifact.folder}")
    if reference is not None and drops:
        drop_checkpoints(reference.folder)


def _run_ntp(stage: str, artifact: Artifact, context: RunContext, device: Device) -> None:
    from sftmix.stages.reference import has_checkpoints

    config = context.config
    num_checkpoints = config.reference.num_checkpoints
    is_reference = stage == "reference"
    shown = "reference" if is_reference else "target"

    def usable(folder: Path) -> bool:
        return not is_reference or has_checkpoints(folder, num_checkpoints)

    if artifact.is_complete and usable(artifact.folder):
        artifact.check()
        _say(shown, f"already there: {artifact.folder}")
        return
    again = ", again: its checkpoints are gone and their scores too" if artifact.is_complete else ""
    model = config.reference.model if is_reference else config.model
    is_plain = is_reference or config.is_baseline
    how = "by next-token prediction" if is_plain else f"with recipe {config.recipe.name}"
    _say(shown, f"tuning {model_name(model)} {how}{again}")
    _make(stage, artifact, context, device, usable=usable)
    _say(shown, f"written: {artifact.folder}")


def _make(
    stage: str,
    artifact: Artifact,
    context: RunContext,
    device: Device,
    *,
    inputs: tuple[Path, ...] = (),
    usable: Callable[[Path], bool] = lambda _: True,
) -> None:
    """Make the artifact of a stage, here or in processes of its own; on other nodes than the first, help to make it."""
    config = context.config
    spec = StageSpec(stage, artifact.partial, artifact.fields, inputs)
    if config.trainer.node_rank > 0:
        stopped = run_stage_on_ranks(spec, context, device)
        _wait_for(artifact, usable, config.trainer.rdzv_timeout)
    else:
        stopped = 0
        with making(artifact, resume=True, usable=usable) as folder:
            if folder is not None:
                stopped = run_stage_on_ranks(spec, context, device)
        tidy(artifact.folder)  # training states are removed when the artifact is complete
    if stopped and stage in ("reference", "confidence"):
        raise Stopped(f"stopped after stage {stage}, which is complete", stopped)


def _wait_for(artifact: Artifact, usable: Callable[[Path], bool], seconds: float) -> None:
    """Wait until the first node has given an artifact its name."""
    deadline = time.monotonic() + seconds
    while not (artifact.is_complete and usable(artifact.folder)):
        if time.monotonic() > deadline:
            raise InputError(f"root={artifact.root}: no {artifact.folder.name} in it: do all nodes share this folder?")
        time.sleep(0.1)


def _say(stage: str, what: str) -> None:
    print(f"{stage:<12}{what}", flush=True)
