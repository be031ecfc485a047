"""A run of the recipe: its stages in order, what is there skipped, everything that can be checked checked first."""

from pathlib import Path

import numpy as np

from sftmix.artifacts import Artifact
from sftmix.config import Config, Model
from sftmix.errors import InputError
from sftmix.stages.dataset import said_of
from sftmix.stages.device import Device, choose_device
from sftmix.stages.materials import Encoded, Materials
from sftmix.stages.plan import Plan, check_hub, check_inputs, make_plan, model_name, pin_revisions, reference_lr
from sftmix.terminal import counted, visible


def run_recipe(config: Config) -> Plan:
    """Run the stages of a configuration that are not there yet.

    Raises:
        InputError: anything that was given is wrong; nothing was trained then.
    """
    check_inputs(config)
    pin_revisions(config)
    device = choose_device(config.trainer)
    plan = make_plan(config, device)
    if plan.target.is_complete:
        for name, artifact in _stages(plan):
            if artifact.is_complete:
                _say(name, f"already there: {artifact.folder}")
        return plan
    check_hub(config, plan)
    materials = Materials(config)
    _prepare(plan, materials)
    where = "the CPU" if device.accelerator == "cpu" else "one GPU"
    print(f"device      {where}, precision {device.precision}", flush=True)
    if config.needs_split:
        _run_split_recipe(plan, materials, device)
    else:
        _run_ntp(plan.target, materials, device, "target", config.model, config.recipe.lr, config.seed)
    return plan


def _stages(plan: Plan) -> list[tuple[str, Artifact]]:
    stages = (("reference", plan.reference), ("confidence", plan.confidence), ("target", plan.target))
    return [(name, artifact) for name, artifact in stages if artifact is not None]


def _prepare(plan: Plan, materials: Materials) -> None:
    """Read and encode everything that the stages will need, so that what is wrong is said before training starts."""
    config = materials.config
    encoded = materials.encoded(config.model)
    print(f"data        {config.data.name}, as the target's tokenizer sees it", flush=True)
    print(visible(said_of(config.data, materials.reading)), visible(encoded.census.table()), sep="\n", flush=True)
    print(f"  {len(encoded.train):>9,} to train on, {len(encoded.val):,} held out", flush=True)
    if not encoded.val:
        print("            nothing is held out, so no held-out loss: data.val_fraction=0.1 takes a tenth", flush=True)
    if _trains_on_half(config) and len(encoded.train) < 4:
        raise InputError(
            f"{counted(len(encoded.train), 'example')} to train on, expected at least 4 to train on half of them"
        )
    if config.confidence.path is not None:
        from sftmix.stages.target import read_split

        read_split(Path(config.confidence.path), encoded.train.ids, config.confidence.use)
    elif plan.tunes_reference or not config.needs_split:
        _check_reference(encoded, materials)


def _check_reference(target: Encoded, materials: Materials) -> None:
    """Refuse a reference that could not be tuned or could not score, before it is tuned."""
    config = materials.config
    model = config.reference.model if config.needs_split else config.model
    encoded = materials.encoded(model)
    _check_both_keep(target, encoded, model)
    num_examples, num_checkpoints = len(encoded.train), config.reference.num_checkpoints
    steps = config.data.epochs * -(-num_examples // config.recipe.global_batch_size)
    if steps < num_checkpoints:
        key = "data" if num_checkpoints == config.data.num_checkpoints else "reference"
        more_epochs = -(-num_checkpoints * config.data.epochs // steps)
        raise InputError(
            f"reference.num_checkpoints={num_checkpoints}: the reference takes {counted(steps, 'step')} "
            f"({counted(num_examples, 'example')}, {counted(config.data.epochs, 'epoch')}, steps of "
            f"{config.recipe.global_batch_size}), expected at least as many steps as checkpoints: set "
            f"{key}.num_checkpoints={steps}, or more steps by data.epochs={more_epochs}"
        )


def _check_both_keep(target: Encoded, reference: Encoded, model: Model) -> None:
    """Refuse a reference whose tokenizer leaves too few of the target's examples, before it is tuned."""
    from sftmix.stages.target import LEAST_COVERAGE

    covered = int(np.isin(target.train.lines, reference.train.lines).sum())
    if covered < LEAST_COVERAGE * len(target.train):
        raise InputError(
            f"reference.model={model_name(model)}: its tokenizer leaves {covered} of the target's {len(target.train)} "
            f"examples (the others are longer than data.max_seq_len), expected at least {LEAST_COVERAGE:.0%}"
        )


def _trains_on_half(config: Config) -> bool:
    """Whether the data set is one half alone (Table 6 without Mixup)."""
    return config.recipe.mixup is None and config.recipe.ntp.on != "all"


def _run_split_recipe(plan: Plan, materials: Materials, device: Device) -> None:
    from sftmix.stages import confidence, reference, target

    config = materials.config
    if plan.confidence is None:
        scores = Path(str(config.confidence.path))
        _say("confidence", f"given: {scores}")
    else:
        scores = plan.confidence.folder / "confidence.parquet"
        if plan.confidence.is_complete:
            for name, artifact in _stages(plan)[:-1]:
                if artifact.is_complete:
                    _say(name, f"already there: {artifact.folder}")
        else:
            if plan.reference is None:
                folders = [Path(folder) for folder in config.confidence.checkpoints or []]
            else:
                model, seed = config.reference.model, config.reference.seed
                _run_ntp(plan.reference, materials, device, "reference", model, reference_lr(config), seed)
                folders = reference.checkpoint_folders(plan.reference.folder)
            _say("confidence", f"scoring under {len(folders)} checkpoints")
            confidence.run_confidence(plan.confidence, materials, device, folders)
            device.release()
            _say("confidence", f"written: {plan.confidence.folder}")
            if plan.reference is not None and not config.reference.keep_checkpoints:
                reference.drop_checkpoints(plan.reference.folder)
    _say("target", f"tuning {model_name(config.model)} with recipe {config.recipe.name}")
    target.run_target(plan.target, materials, device, scores)
    _say("target", f"written: {plan.target.folder}")


def _run_ntp(
    artifact: Artifact, materials: Materials, device: Device, stage: str, model: Model, lr: float, seed: int
) -> None:
    from sftmix.stages import reference

    num_checkpoints = materials.config.reference.num_checkpoints
    if artifact.is_complete and (stage == "target" or reference.has_checkpoints(artifact.folder, num_checkpoints)):
        _say(stage, f"already there: {artifact.folder}")
        return
    again = ", again: its checkpoints are gone and their scores too" if artifact.is_complete else ""
    _say(stage, f"tuning {model_name(model)} by next-token prediction{again}")
    reference.run_ntp(artifact, materials, device, stage=stage, model=model, lr=lr, seed=seed)
    device.release()
    _say(stage, f"written: {artifact.folder}")


def _say(stage: str, what: str) -> None:
    print(f"{stage:<12}{what}", flush=True)
