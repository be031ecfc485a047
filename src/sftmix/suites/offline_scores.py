"""What the figures of `suite=offline` are called, and how each is had from what a model predicts and answers."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sftmix.evaluation.conversation import Answer
from sftmix.evaluation.repetition import distinct, repetition
from sftmix.evaluation.terciles import HALVES, TERCILES, by_confidence

if TYPE_CHECKING:
    from sftmix.evaluation.token_statistics import TokenStatistics

ALL = "all"


class Part(NamedTuple):
    """Ids of the held-out examples of a part, and of the training examples of the same part."""

    val: list[str]
    trained: list[str]


def parts_of(val: Sequence[str], train: Sequence[str], confidence: Mapping[str, float], gap: Part) -> dict[str, Part]:
    """What the losses are given of: all examples and, where their confidence is known, halves and terciles.

    Held-out examples have their ranks among themselves, and so have training examples: the reference was trained on
    the latter, and is more confident of all of them.

    Args:
        val: held-out examples.
        train: training examples, whether they were trained on or not.
        confidence: of the reference, by id.
        gap: whose losses the gap over all is between: where one half alone was trained on, that half.
    """
    parts = {ALL: gap}
    sides = [{i: confidence[i] for i in ids if i in confidence} for ids in (val, train)]
    for names in (HALVES, TERCILES):
        of_val, of_train = (by_confidence(side, names) for side in sides)
        parts |= {name: Part(of_val[name], of_train[name]) for name in names if of_val[name]}
    return parts


def those_in(statistics: "TokenStatistics", ids: Sequence[str]) -> list[str]:
    """The ids that were looked at."""
    return [i for i in ids if i in statistics.nll]


def loss_scores(held_out: "TokenStatistics", trained: "TokenStatistics", parts: Mapping[str, Part]) -> dict[str, float]:
    """Held-out loss in nats per response token and perplexity, and held-out minus training loss, of each part."""
    overall = held_out.loss(list(held_out.nll))
    scores = {"held-out loss": overall, "perplexity": math.exp(overall)}
    for name, part in parts.items():
        val, train = those_in(held_out, part.val), those_in(trained, part.trained)
        if val and name != ALL:
            scores[f"held-out loss, {name}"] = held_out.loss(val)
        if val and train:
            scores["gap" if name == ALL else f"gap, {name}"] = held_out.loss(val) - trained.loss(train)
    return scores


def calibration_scores(held_out: "TokenStatistics", num_bins: int) -> dict[str, float]:
    """Calibration of the next held-out response token beside the accuracy; shares are 0 to 1, entropy in nats."""
    from sftmix.evaluation.calibration import calibration_error

    prediction = held_out.prediction
    return {
        "accuracy": float(prediction.is_correct.double().mean()),
        "top probability": float(prediction.top_probability.double().mean()),
        "ECE": calibration_error(prediction, num_bins),
        "Brier": float(prediction.brier.double().mean()),
        "entropy": float(prediction.entropy.double().mean()),
    }


def answer_scores(
    ids: Sequence[str], answers: Sequence[Answer]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Length and repetition of answers; and what is a mean over answers, by the example that was asked.

    Shares are 0 to 1. Nothing is said of answers that are too short to repeat themselves.
    """
    repeated = {i: repetition(answer.text) for i, answer in zip(ids, answers, strict=True)}
    questions = {
        "answer tokens": {i: float(answer.num_tokens) for i, answer in zip(ids, answers, strict=True)},
        "cut by length": {i: float(answer.finish == "length") for i, answer in zip(ids, answers, strict=True)},
        "4-gram repetition": {i: share for i, share in repeated.items() if share is not None},
    }
    questions = {name: values for name, values in questions.items() if values}
    scores = {name: math.fsum(values.values()) / len(values) for name, values in questions.items()}
    over_all = {f"distinct-{n}": distinct((answer.text for answer in answers), n) for n in (1, 2)}
    return scores | {name: share for name, share in over_all.items() if share is not None}, questions
