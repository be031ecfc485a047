"""Stage 3 (section 3.3, Steps 2 and 3): split the data at the median confidence and tune the target with Mixup."""

from collections.abc import Sequence

import numpy as np

from sftmix.artifacts import write_table
from sftmix.stages.context import Materials
from sftmix.stages.split import partner_order, split_examples, ties_in_words
from sftmix.stages.task import Task
from sftmix.stages.train import tune
from sftmix.stages.worker import Worker


def write_target(task: Task, materials: Materials, worker: Worker) -> None:
    """Tune the target on its split: by a confidence file, where one is given, or by what stands in its place."""
    config = materials.config
    recipe = config.recipe
    encoded = materials.encoded(config.model)
    train = encoded.train
    split = split_examples(materials, task.inputs[0] if task.inputs else None)
    if worker.ranks.is_first:
        for line in ties_in_words([split.confidence[i] for i in train.ids if i in split.confidence]):
            print(f"{'split':<12}{line}", flush=True)
    is_confident: Sequence[bool | None] | None = split.train
    wanted = None if recipe.ntp.on == "all" else recipe.ntp.on == "confident"
    weights = [recipe.ntp.weight if wanted is None or half is wanted else 0.0 for half in split.train]
    if recipe.mixup is None:  # Table 6 without Mixup: the data set is that half
        train = train.select(np.flatnonzero([half is wanted for half in split.train]))
        is_confident, weights = None, [recipe.ntp.weight] * len(train)
    tune(
        task,
        materials,
        worker,
        title=f"target ({recipe.name})",
        model=config.model,
        lr=recipe.lr,
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
    if worker.ranks.is_first:
        write_table(task.folder / "split.parquet", split.table(encoded))
