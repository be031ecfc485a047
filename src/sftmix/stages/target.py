"""Stage 3 (section 3.3, Steps 2 and 3): split the data at the median confidence and tune the target with Mixup."""

from collections.abc import Sequence

import numpy as np

from sftmix.artifacts.tables import write_table
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.split import partner_order, split_examples, ties_in_words
from sftmix.stages.train import TrainingExamples, tune


def write_target(spec: StageSpec, context: RunContext, rank: RankContext) -> None:
    """Tune the target on its split: by a confidence file, where one is given, or by what stands in its place."""
    config = context.config
    recipe = config.recipe
    encoded = context.encoded(config.model)
    train = encoded.train
    split = split_examples(context, spec.inputs[0] if spec.inputs else None)
    if rank.ranks.is_first:
        for line in ties_in_words([split.confidence[i] for i in train.ids if i in split.confidence]):
            print(f"{'split':<12}{line}", flush=True)
    is_confident: Sequence[bool | None] | None = split.train
    wanted = None if recipe.ntp.on == "all" else recipe.ntp.on == "confident"
    weights = [recipe.ntp.weight if wanted is None or half is wanted else 0.0 for half in split.train]
    if recipe.mixup is None:  # Table 6 without Mixup: the data set is that half
        train = train.select(np.flatnonzero([half is wanted for half in split.train]))
        is_confident, weights = None, [recipe.ntp.weight] * len(train)
    order = partner_order(config, train, split.confidence)
    examples = TrainingExamples(train, weights, is_confident, order, split.places_of_val())
    tune(spec, config, context, rank, examples, num_checkpoints=1)
    if rank.ranks.is_first:
        write_table(spec.folder / "split.parquet", split.table(encoded))
