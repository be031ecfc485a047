"""Check before the first stage starts everything that a stage would otherwise report hours later."""

from pathlib import Path

from sftmix.artifacts.manifest import verify_inside
from sftmix.config.schema import Config
from sftmix.errors import InputError
from sftmix.models.lora import is_adapter
from sftmix.stages.context import RunContext
from sftmix.stages.data import EncodedData
from sftmix.stages.inputs import checkpoint_base
from sftmix.stages.models import load_model
from sftmix.stages.plan import Plan, reference_config
from sftmix.stages.prepare import describe_reading
from sftmix.stages.validation_files import few_held_out
from sftmix.terminal import counted, visible


def prepare_data(plan: Plan, context: RunContext) -> None:
    """Read, verify and encode what the stages need, and print what happened to the data."""
    config = context.config
    models = [config.model, *([config.reference.model] if plan.reads_reference else [])]
    given = [*(model.path for model in models), config.confidence.path, *(config.confidence.checkpoints or [])]
    for path in dict.fromkeys(Path(path) for path in given if path is not None):
        if path.exists():
            verify_inside(path)
    if config.callbacks:  # a wrong argument is reported now, and not after the reference was tuned
        from lightning import Callback

        from sftmix.stages.tracking import instantiate_entries

        instantiate_entries("callbacks", config.callbacks, Callback, plan.target.partial)
    target = context.encoded(config.model)
    _print_data(context, target)
    if config.trains_on_subset and len(target.train) < 4:
        raise InputError(f"{counted(len(target.train), 'example')} to train on, expected at least 4 for two subsets")
    if config.needs_split and not config.needs_confidence:
        from sftmix.stages.split import split_examples, split_in_words

        is_confident = split_examples(context, None).train  # refuses an empty subset
        confident, unconfident = is_confident.count(True), is_confident.count(False)
        sizes = f"{counted(confident, 'example')} in the confident subset, {unconfident:,} in the unconfident one"
        print(f"split       {split_in_words(config.split)}: {sizes}", flush=True)
    elif config.confidence.path is not None:
        from sftmix.stages.split import read_split

        read_split(Path(config.confidence.path), target.train.ids, config.confidence.use, is_given=True)
    elif plan.reads_reference:
        reference = context.encoded(config.reference.model)
        _check_coverage(config, target, reference)
        if plan.tunes_reference:
            _check_steps(config, len(reference.train))
    if plan.confidence is not None and not plan.confidence.is_complete:
        _check_weights(config, plan, target)


def _print_data(context: RunContext, target: EncodedData) -> None:
    data = context.config.data
    print(f"data        {data.title}, as the target's tokenizer sees it", flush=True)
    print(visible(describe_reading(data, context.data.reading)), visible(target.census.table()), sep="\n", flush=True)
    print(f"  {len(target.train):>9,} to train on, {len(target.val):,} held out", flush=True)
    for note in target.encoder.notes:
        print(f"            chat template: {visible(note)}", flush=True)
    if not target.val:
        print("            nothing is held out, so no held-out loss: data.val_fraction=0.1 takes a tenth", flush=True)
    elif warning := few_held_out(len(target.val)):
        print(f"            {warning}", flush=True)
    for name, file in context.validation_files().items():
        print(f"            validation file {visible(file.in_words(name))}", flush=True)


def _check_coverage(config: Config, target: EncodedData, reference: EncodedData) -> None:
    """Refuse a reference whose tokenizer drops too many examples of the target."""
    import numpy as np  # a complete run is recognized before anything heavy is imported

    from sftmix.stages.split import LEAST_COVERAGE

    covered = int(np.isin(target.train.lines, reference.train.lines).sum())
    if covered < LEAST_COVERAGE * len(target.train):
        raise InputError(
            f"reference.model={config.reference.model.title}: its tokenizer leaves {covered} of the target's "
            f"{len(target.train)} examples (the others are longer than data.max_seq_len), expected at least "
            f"{LEAST_COVERAGE:.0%}"
        )


def _check_steps(config: Config, num_examples: int) -> None:
    """Refuse a reference of fewer steps than checkpoints."""
    from sftmix.stages.reference import num_steps

    tuned, num_checkpoints = reference_config(config), config.reference.num_checkpoints
    steps, epochs = num_steps(tuned, num_examples), tuned.data.epochs
    if steps < num_checkpoints:
        key = "data" if num_checkpoints == config.data.num_checkpoints else "reference"
        more_epochs = -(-num_checkpoints * epochs // steps)
        of_epochs = "data" if config.reference.epochs is None else "reference"
        raise InputError(
            f"reference.num_checkpoints={num_checkpoints}: the reference takes {counted(steps, 'step')} "
            f"({counted(num_examples, 'example')}, {counted(epochs, 'epoch')}, steps of "
            f"{config.recipe.global_batch_size}), expected at least as many steps as checkpoints: set "
            f"{key}.num_checkpoints={steps}, or more steps by {of_epochs}.epochs={more_epochs}"
        )


def _check_weights(config: Config, plan: Plan, target: EncodedData) -> None:
    """Refuse wrong weights, and a target that cannot be saved, if they are loaded only after another stage."""
    from sftmix.models.export import check_saving
    from sftmix.models.language_model import SFTMixLM
    from sftmix.models.loading import check_weights

    for folder in config.confidence.checkpoints or []:
        if is_adapter(Path(folder)):
            check_weights(*checkpoint_base(config, Path(folder)))
        else:
            check_weights(folder, None)
    model, reference = config.model, config.reference.model
    is_loaded_first = plan.tunes_reference and (model.path, model.revision) == (reference.path, reference.revision)
    if config.mode != "confidence" and model.path is not None and not is_loaded_first:
        lm = SFTMixLM(load_model(model))
        check_saving(lm.causal_lm, target.tokenizer, target.encoder.end_token_id)
