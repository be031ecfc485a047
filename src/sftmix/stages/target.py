"""Stage 3 (section 3.3, Steps 2 and 3): split the examples and tune the target with Mixup."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sftmix.artifacts.tables import write_parts, write_table
from sftmix.config.schema import WINDOW, Config
from sftmix.data.shards import EncodedExamples
from sftmix.stages.confidence import readable_examples
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.data import EncodedData
from sftmix.stages.split import Subsets, partner_order, split_examples, split_validation_file, ties_in_words
from sftmix.stages.train import TrainingExamples, ntp_weights, tune
from sftmix.training.datamodule import ValidationSet
from sftmix.training.first_epoch import FirstEpochSplit
from sftmix.training.held_out import HeldOut


def write_target(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Tune the target on its subsets, and write `split.parquet`.

    If the split is by confidence, `spec.inputs` is the confidence file.
    """
    config = context.config
    if config.splits_after_first_epoch:
        _write_after_first_epoch(spec, context, rank)
        return
    data = context.encoded(config.model)
    subsets = split_examples(context, spec.inputs[0] if spec.inputs else None)
    if rank.ranks.is_first:
        for line in ties_in_words([subsets.confidence[i] for i in data.train.ids if i in subsets.confidence]):
            print(f"{'split':<12}{line}", flush=True)
    examples = training_examples(config, data.train, subsets)
    examples = replace(examples, val_sets=_validation_sets(context, subsets.confidence))
    tune(spec, config, context, rank, examples, num_checkpoints=1)
    if rank.ranks.is_first:
        write_table(spec.folder / "split.parquet", subsets.table(data))


def _validation_sets(context: RunContext, confidence: dict[str, float]) -> dict[str, ValidationSet]:
    return {
        name: ValidationSet(file.examples, split_validation_file(context.config.split, file, confidence))
        for name, file in context.validation_files().items()
    }


def _write_after_first_epoch(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Tune the target by NTP in the first epoch, and on the subsets of its own losses afterwards.

    Beside `split.parquet`, the folder holds what the confidence stage writes: `confidence.parquet` with the recorded
    losses as those of one checkpoint, and `examples.parquet`. The confidence is the rank within a window.
    """
    config = context.config
    data = context.encoded(config.model)
    recorder = FirstEpochSplit(config.confidence.window or WINDOW, partial(partner_order, config, data.train))
    unknown = Subsets([None] * len(data.train), [None] * len(data.val), {})
    examples = training_examples(config, data.train, unknown)
    examples = replace(examples, first_epoch=recorder, val_sets=_validation_sets(context, {}))
    tune(spec, config, context, rank, examples, num_checkpoints=1)
    if rank.ranks.is_first:
        subsets = Subsets(recorder.is_confident, recorder.val_is_confident, recorder.confidence)
        write_table(spec.folder / "split.parquet", subsets.table(data))
        _write_scores(spec.folder, recorder, data, context)


def _write_scores(folder: Path, recorder: FirstEpochSplit, data: EncodedData, context: RunContext) -> None:
    train, val = sorted(recorder.nll), recorder.val or HeldOut([], [], [])
    train_ids, val_ids = data.train.ids, data.val.ids
    ids = [*(train_ids[i] for i in train), *(val_ids[i] for i in val.examples)]
    scores = {
        "example_id": ids,
        "checkpoint": [1] * len(ids),
        "num_tokens": [*(int(data.train.num_response_tokens[i]) for i in train), *val.num_tokens],
        "nll": [*(recorder.nll[i] for i in train), *val.nll],
    }
    write_table(folder / "confidence.parquet", scores)
    columns = {"confidence": [recorder.confidence[i] for i in ids], "variability": [0.0] * len(ids)}
    write_parts(folder / "examples.parquet", readable_examples(ids, columns, data, context))


def training_examples(config: Config, train: EncodedExamples, subsets: Subsets) -> TrainingExamples:
    """Return the examples of a target with the weight of NTP on each.

    With recipe.ntp.on=confident, NTP learns from the confident subset only. The unconfident examples have the weight 0
    and are still mixed. Without Mixup, the data set is the confident subset (Table 6). `on=unconfident` is the reverse.
    """
    recipe, val_indices = config.recipe, subsets.val_indices()
    on, learned_subset = recipe.ntp.on, recipe.ntp.on == "confident"
    is_learned = [on == "all" or is_confident is learned_subset for is_confident in subsets.train]
    if recipe.mixup is None:
        train = train.select(np.flatnonzero(is_learned))
        return TrainingExamples(train, ntp_weights(config, train), val_subsets=val_indices)
    weights = [w if learned else 0.0 for w, learned in zip(ntp_weights(config, train), is_learned, strict=True)]
    order = partner_order(config, train, subsets.confidence)
    return TrainingExamples(train, weights, subsets.train, order, val_indices)
