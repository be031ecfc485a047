"""Stage 3 (section 3.3, Steps 2 and 3): split the data at the median confidence and tune the target with Mixup."""

from collections.abc import Sequence

import numpy as np

from sftmix.artifacts.tables import write_table
from sftmix.stages.context import RankContext, RunContext, StageSpec
from sftmix.stages.split import partner_order, split_examples, ties_in_words
from sftmix.stages.train import tune


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
    tune(
        spec,
        context,
        rank,
        title=f"target ({recipe.name})",
        model=config.model,
        lr=config.optimizer.lr,
        seed=config.seed,
        train=train,
        is_confident=is_confident,
        order=partner_order(config, train, split.confidence),
        weights=weights,
        mixup=recipe.mixup is not None,
        neftune_alpha=recipe.neftune_alpha,
        prompt_weight=recipe.ntp.prompt_weight,
        num_checkpoints=1,
        val_halves=split.places_of_val(),
    )
    if rank.ranks.is_first:
        write_table(spec.folder / "split.parquet", split.table(encoded))
