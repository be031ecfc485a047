"""Stage 3 (section 3.3, Steps 2 and 3): split the data at the median confidence and tune the target with Mixup."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sftmix.artifacts import read_confidence, write_table
from sftmix.errors import InputError
from sftmix.functional.confidence import split_by_confidence
from sftmix.stages.confidence import confidence_of
from sftmix.stages.materials import Encoded, Materials
from sftmix.stages.task import Task
from sftmix.stages.tuning import tune
from sftmix.stages.worker import Worker

LEAST_COVERAGE = 0.99


def write_target(task: Task, materials: Materials, worker: Worker) -> None:
    """Tune the target on the split that a confidence file gives."""
    config = materials.config
    recipe = config.recipe
    encoded = materials.encoded(config.model)
    train = encoded.train
    halves, confidence = read_split(task.inputs[0], train.ids, config.confidence.use)
    of_each = [halves.get(i) for i in train.ids]
    is_confident: Sequence[bool | None] | None = of_each
    wanted = None if recipe.ntp.on == "all" else recipe.ntp.on == "confident"
    weights = [recipe.ntp.weight if wanted is None or half is wanted else 0.0 for half in of_each]
    if recipe.mixup is None:  # Table 6 without Mixup: the data set is that half
        train = train.select(np.flatnonzero([half is wanted for half in of_each]))
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
        weights=weights,
        mixup=recipe.mixup is not None,
        num_checkpoints=1,
        val_halves=_places_of_halves(encoded.val.ids, confidence),
    )
    if worker.ranks.is_first:
        write_table(task.folder / "split.parquet", split_table(halves, confidence, encoded))


def _held_out_halves(val_ids: Sequence[str], confidence: dict[str, float]) -> dict[str, bool]:
    """The half of each held-out example that was scored, by the held-out median."""
    known = [i for i in val_ids if i in confidence]
    held_out = split_by_confidence(torch.tensor([confidence[i] for i in known], dtype=torch.float64), known)
    return dict(zip(known, held_out.tolist(), strict=True))


def _places_of_halves(val_ids: Sequence[str], confidence: dict[str, float]) -> dict[str, list[int]]:
    """Which of the held-out examples are in each half."""
    halves = _held_out_halves(val_ids, confidence)
    named = (("confident", True), ("unconfident", False))
    return {name: [k for k, i in enumerate(val_ids) if halves.get(i) is wanted] for name, wanted in named}


def split_table(halves: dict[str, bool], confidence: dict[str, float], encoded: Encoded) -> dict[str, list[Any]]:
    """One row an example, held-out ones too: their half is by the held-out median, and nothing was trained on it."""
    val_ids = encoded.val.ids
    halves = {**halves, **_held_out_halves(val_ids, confidence)}
    named = {None: None, True: "confident", False: "unconfident"}
    ids = [*encoded.train.ids, *val_ids]
    return {
        "example_id": ids,
        "part": ["train"] * len(encoded.train) + ["val"] * len(val_ids),
        "confidence": [confidence.get(i) for i in ids],
        "half": [named[halves.get(i)] for i in ids],
    }


def read_split(
    path: Path, train_ids: Sequence[str], use: int | Sequence[int] | None
) -> tuple[dict[str, bool], dict[str, float]]:
    """Which examples are confident, over those to train on; and how confident all examples of the file are.

    Args:
        path: a confidence file.
        train_ids: examples to train on.
        use: which checkpoints count.

    Raises:
        InputError: the file has no such checkpoint, holds what is no perplexity, or is of other data: fewer than 99%
            of the examples to train on have a confidence under the checkpoints that count.
    """
    scores = read_confidence(path)
    numbers = scores["checkpoint"].unique().to_pylist()
    if use is not None and not set([use] if isinstance(use, int) else use) <= set(range(1, len(numbers) + 1)):
        raise InputError(f"confidence.use={use}: {path} has {len(numbers)} checkpoints")
    try:
        ids, values, _ = confidence_of(scores, use)
        confidence = dict(zip(ids, values.tolist(), strict=True))
        known = [i for i in train_ids if i in confidence]
        is_confident = split_by_confidence(torch.tensor([confidence[i] for i in known], dtype=torch.float64), known)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: no confidence can be had from it ({error})") from None
    if len(known) < LEAST_COVERAGE * len(train_ids):
        raise InputError(
            f"{path}: has the confidence of {len(known)} of the {len(train_ids)} examples to train on, expected at "
            f"least {LEAST_COVERAGE:.0%}: is it of other data?"
        )
    return dict(zip(known, is_confident.tolist(), strict=True)), confidence
