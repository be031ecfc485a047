"""Stage 3 (section 3.3, Steps 2 and 3): split the data at the median confidence and tune the target with Mixup."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftmix.artifacts import Artifact, making, read_confidence, write_table
from sftmix.data.example import Example
from sftmix.errors import InputError
from sftmix.functional.confidence import split_by_confidence
from sftmix.stages.confidence import confidence_of
from sftmix.stages.device import Device
from sftmix.stages.materials import Materials
from sftmix.stages.tuning import tune

LEAST_COVERAGE = 0.99


def run_target(artifact: Artifact, materials: Materials, device: Device, confidence_file: Path) -> None:
    """Tune the target on the split that a confidence file gives."""
    config = materials.config
    recipe = config.recipe
    with making(artifact) as folder:
        if folder is None:
            return
        train = materials.encoded(config.model).train
        columns = read_confidence(confidence_file)
        check_coverage(columns, [e.example for e in train], confidence_file)
        halves, confidences = split(columns, [e.example.id for e in train], config.confidence.use)
        is_confident: list[bool | None] | None = [halves.get(e.example.id) for e in train]
        wanted = None if recipe.ntp.on == "all" else recipe.ntp.on == "confident"
        weights = [recipe.ntp.weight if wanted is None or half is wanted else 0.0 for half in is_confident or []]
        if recipe.mixup is None:  # Table 6 without Mixup: the data set is that half
            train = [e for e in train if halves.get(e.example.id) is wanted]
            is_confident, weights = None, [recipe.ntp.weight] * len(train)
        tune(
            folder,
            materials,
            device,
            stage="target",
            title=f"target ({recipe.name})",
            model=config.model,
            lr=recipe.lr,
            seed=config.seed,
            train=train,
            is_confident=is_confident,
            weights=weights,
            mixup=recipe.mixup is not None,
            num_checkpoints=1,
        )
        named = {None: None, True: "confident", False: "unconfident"}
        ids = [e.example.id for e in materials.encoded(config.model).train]
        write_table(
            folder / "split.parquet",
            {
                "example_id": ids,
                "confidence": [confidences.get(i) for i in ids],
                "half": [named[halves.get(i)] for i in ids],
            },
        )


def split(
    columns: dict[str, list[Any]], train_ids: Sequence[str], use: int | Sequence[int] | None
) -> tuple[dict[str, bool], dict[str, float]]:
    """Which examples are confident, and how confident they are: over those to train on that have a confidence."""
    ids, confidence, _ = confidence_of(columns, use)
    place = {example_id: k for k, example_id in enumerate(ids)}
    known = [example_id for example_id in train_ids if example_id in place]
    values = confidence[[place[i] for i in known]]
    is_confident = split_by_confidence(values, known)
    return dict(zip(known, is_confident.tolist(), strict=True)), dict(zip(known, values.tolist(), strict=True))


def check_coverage(columns: dict[str, list[Any]], examples: Sequence[Example], path: Path) -> None:
    """Refuse a confidence file of other data.

    Raises:
        InputError: fewer than 99% of the examples to train on have a confidence.
    """
    scored = set(columns["example_id"])
    covered = sum(e.id in scored for e in examples)
    if covered < LEAST_COVERAGE * len(examples):
        raise InputError(
            f"{path}: has the confidence of {covered} of the {len(examples)} examples to train on, expected at least "
            f"{LEAST_COVERAGE:.0%}: is it of other data?"
        )
