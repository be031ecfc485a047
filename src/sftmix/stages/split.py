"""The confident and the unconfident subset of the examples (Step 1 of section 3.3), by confidence or another rule."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sftmix.artifacts.tables import read_confidence
from sftmix.config.schema import Config, Split
from sftmix.data.pairing import descending_ranks, random_subsets, subsets_by_group, subsets_by_length
from sftmix.data.row_errors import list_names
from sftmix.data.shards import EncodedExamples
from sftmix.errors import InputError
from sftmix.functional.confidence import split_by_confidence, split_known
from sftmix.stages.context import RunContext
from sftmix.stages.data import EncodedData
from sftmix.stages.scores import check_scores, confidence_of
from sftmix.stages.validation_files import ValidationFile
from sftmix.terminal import counted, one_line

LEAST_COVERAGE = 0.99
LEAST_TIES = 0.01  # fraction of the examples with the confidence of the median above which ties are reported
SUBSETS: dict[bool | None, str] = {True: "confident", False: "unconfident"}


class Subsets(NamedTuple):
    """Which examples are confident."""

    train: list[bool | None]  # Whether each example to train on is confident; None if it is in no subset
    val: list[bool | None]  # The same for held-out examples, by the same rule among themselves
    confidence: dict[str, float]  # By example id, where it is known. Empty if the split is not by confidence

    def val_indices(self) -> dict[str, list[int]]:
        """Return the indices of the held-out examples of each subset, by the name of the subset."""
        return indices_of_subsets(self.val)

    def table(self, encoded: EncodedData) -> dict[str, list[Any]]:
        """Return the columns of `split.parquet`. Held-out examples are included."""
        ids = [*encoded.train.ids, *encoded.val.ids]
        return {
            "example_id": ids,
            "part": ["train"] * len(encoded.train) + ["val"] * len(encoded.val),
            "confidence": [self.confidence.get(i) for i in ids],
            "subset": [SUBSETS.get(is_confident) for is_confident in (*self.train, *self.val)],
        }


def split_examples(context: RunContext, scores: Path | None) -> Subsets:
    """Split the examples by confidence (in the file `scores`) or by another rule. Refuse an empty subset."""
    config = context.config
    encoded = context.encoded(config.model)
    if config.split.by == "confidence":
        assert scores is not None
        is_given = config.confidence.path is not None
        train, confidence = read_split(scores, encoded.train.ids, config.confidence.use, is_given=is_given)
        return Subsets([train.get(i) for i in encoded.train.ids], split_known(encoded.val.ids, confidence), confidence)
    is_confident = _split_by_rule(config.split, encoded.train, _groups(encoded.train, context))
    _check_sizes(config, is_confident, context)
    return Subsets([*is_confident], [*_split_by_rule(config.split, encoded.val, _groups(encoded.val, context))], {})


def split_validation_file(split: Split, file: ValidationFile, confidence: dict[str, float]) -> dict[str, list[int]]:
    """Return the indices of the examples of each subset of a validation file, by the rule of the split.

    Like the held-out examples, they are split among themselves. Validation files are not scored. So a split by
    confidence knows only examples that `confidence` has: those that are in the training data too, or in a file of
    scores that was given.
    """
    if split.by == "confidence":
        return indices_of_subsets(split_known(file.examples.ids, confidence))
    return indices_of_subsets(_split_by_rule(split, file.examples, file.groups))


def indices_of_subsets(is_confident: Sequence[bool | None]) -> dict[str, list[int]]:
    """Return the indices of the examples of each subset, by the name of the subset."""
    return {SUBSETS[subset]: [k for k, value in enumerate(is_confident) if value is subset] for subset in (True, False)}


def split_in_words(split: Split) -> str:
    """Return what the two subsets are."""
    return {
        "confidence": "subsets by confidence",
        "random": "random subsets",
        "length": "subsets by length",
        "group": f"group {one_line(split.confident)} and the others",
    }[split.by]


def partner_order(config: Config, train: EncodedExamples, confidence: dict[str, float]) -> list[int] | None:
    """Return the rank of each example by which it is paired, or None if pairs are drawn at random.

    None is also returned for recipe.mixup.pairing=rank if no confidence (by example id) is known.
    """
    if config.recipe.mixup is None or config.recipe.mixup.pairing in ("across", "free", "within"):
        return None
    ids = train.ids
    if config.recipe.mixup.pairing == "length":
        return descending_ranks(train.num_response_tokens.tolist(), ids)
    if not confidence:
        return None
    return descending_ranks([confidence.get(i, float("-inf")) for i in ids], ids)


def _split_by_rule(split: Split, encoded: EncodedExamples, groups: Sequence[str]) -> list[bool]:
    if split.by == "random":
        return random_subsets(encoded.ids, split.seed)
    if split.by == "length":
        return subsets_by_length(encoded.num_response_tokens.tolist(), encoded.ids)
    return subsets_by_group(groups, str(split.confident))


def _groups(encoded: EncodedExamples, context: RunContext) -> list[str]:
    groups: list[str] = context.data.examples.table.column("group").take(encoded.lines).to_pylist()
    return groups


def _check_sizes(config: Config, is_confident: Sequence[bool], context: RunContext) -> None:
    """Refuse a split with an empty subset, or with one that is too small if only this subset is trained on."""
    group, total = f"split.confident={one_line(config.split.confident)}", len(is_confident)
    sizes = {"confident": sum(is_confident), "unconfident": total - sum(is_confident)}
    if not sizes["confident"]:
        groups = sorted(set(_groups(context.encoded(config.model).train, context)) - {""})
        others = f"there are {list_names(groups)}" if groups else "they have none ('data.columns={group: NAME}')"
        raise InputError(f"{group}: none of the {counted(total, 'example')} to train on is of that group; {others}")
    if not sizes["unconfident"]:
        raise InputError(f"{group}: all {counted(total, 'example')} to train on are of that group, expected others too")
    on = config.recipe.ntp.on
    if config.trains_on_subset and sizes[on] < 2:
        raise InputError(
            f"recipe.ntp.on={on}: {counted(sizes[on], 'example')} in that subset ({split_in_words(config.split)}), "
            f"expected at least 2"
        )


def read_split(
    path: Path, train_ids: Sequence[str], use: int | Sequence[int] | None, *, is_given: bool
) -> tuple[dict[str, bool], dict[str, float]]:
    """Return whether each example to train on is confident, and the confidence of every example of the file.

    Args:
        is_given: Whether the file is `confidence.path`. Each row of it is then checked. (A file of this program may
            lack an example under a checkpoint whose tokenizer makes the example too long.)

    Raises:
        InputError: The file has no such checkpoint or does not hold negative log-likelihoods; fewer than 99% of the
            examples to train on have a confidence under the checkpoints that count; or more than half of them have the
            same confidence, also if it is infinite, so that the median splits them by id.
    """
    scores = read_confidence(path)
    numbers = scores["checkpoint"].unique().to_pylist()
    if use is not None and not set([use] if isinstance(use, int) else use) <= set(range(1, len(numbers) + 1)):
        raise InputError(f"confidence.use={use}: {path} has {len(numbers)} checkpoints")
    if is_given:
        check_scores(path, scores, use)
    try:
        ids, values, _ = confidence_of(scores, use)
        confidence = dict(zip(ids, values.tolist(), strict=True))
        known = [i for i in train_ids if i in confidence]
        is_confident = split_by_confidence(torch.tensor([confidence[i] for i in known], dtype=torch.float64), known)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: its scores give no confidence ({error})") from None
    if len(known) < LEAST_COVERAGE * len(train_ids):
        raise InputError(
            f"{path}: has the confidence of {len(known)} of the {len(train_ids)} examples to train on, expected at "
            f"least {LEAST_COVERAGE:.0%}: is it of other data?"
        )
    shared, value = _shared_at_median([confidence[i] for i in known])
    if shared > len(known) / 2:
        infinite = " (an infinite perplexity)" if math.isinf(value) else ""
        raise InputError(
            f"{path}: {shared:,} of the {len(known):,} examples to train on have the same confidence, {value:g}"
            f"{infinite}, so their subsets would be chosen by example id; expected at most half of them"
        )
    return dict(zip(known, is_confident.tolist(), strict=True)), confidence


def _shared_at_median(values: Sequence[float]) -> tuple[int, float]:
    """Return how many values equal the value on both sides of the median, and that value; (0, nan) if they differ."""
    ordered = sorted(values, reverse=True)
    middle = len(ordered) // 2
    if len(ordered) < 2 or ordered[middle - 1] != ordered[middle]:
        return 0, math.nan
    return ordered.count(ordered[middle]), ordered[middle]


def ties_in_words(values: Sequence[float]) -> list[str]:
    """Return a line on confidences that are infinite, and one on confidences that equal the median."""
    total, infinite = f"{len(values):,} examples to train on", sum(map(math.isinf, values))
    shared, value = _shared_at_median(values)
    lines = []
    if infinite:
        lines.append(f"{infinite:,} of {total} have an infinite perplexity under a checkpoint: they are unconfident")
    if shared > LEAST_TIES * len(values):
        lines.append(f"{shared:,} of {total} have the confidence of the median, {value:g}: ids decide their subsets")
    return lines
