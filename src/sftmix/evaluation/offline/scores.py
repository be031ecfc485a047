"""What the figures of `suite=offline` are called, and how each is had from what a model predicts and answers."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sftmix.evaluation.generators.conversation import Answer
from sftmix.evaluation.offline.quantile_bins import HALVES, TERCILES, by_confidence
from sftmix.evaluation.offline.repetition import distinct, repetition
from sftmix.evaluation.results import LOSS, loss_of

if TYPE_CHECKING:
    from torch import Tensor

    from sftmix.evaluation.offline.token_statistics import Linearity, TokenStatistics

ALL, LINEARITY = "all", "linearity gap"


class Subset(NamedTuple):
    """Ids of the held-out examples of a part, and of the training examples of the same part."""

    val: list[str]
    trained: list[str]


def parts_of(
    val: Sequence[str], train: Sequence[str], confidence: Mapping[str, float], gap: Subset
) -> dict[str, Subset]:
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
        parts |= {name: Subset(of_val[name], of_train[name]) for name in names if of_val[name]}
    return parts


def those_in(statistics: "TokenStatistics", ids: Sequence[str]) -> list[str]:
    """The ids that were looked at."""
    return [i for i in ids if i in statistics.nll]


def loss_scores(
    held_out: "TokenStatistics", trained: "TokenStatistics", parts: Mapping[str, Subset]
) -> dict[str, float]:
    """Held-out loss in nats per response token and perplexity, and held-out minus training loss, of each part."""
    scores = {column: held_out.loss(ids) for column, ids in _loss_columns(held_out, parts).items()}
    scores["perplexity"] = math.exp(scores[LOSS])
    for name, part in parts.items():
        val, train = those_in(held_out, part.val), those_in(trained, part.trained)
        if val and train:
            scores["gap" if name == ALL else f"gap, {name}"] = held_out.loss(val) - trained.loss(train)
    return scores


def _loss_columns(held_out: "TokenStatistics", parts: Mapping[str, Subset]) -> dict[str, list[str]]:
    """The held-out losses that are told: their examples, by the name of the score."""
    of_parts = {loss_of(name): those_in(held_out, part.val) for name, part in parts.items() if name != ALL}
    return {LOSS: list(held_out.nll), **{column: ids for column, ids in of_parts.items() if ids}}


def calibration_scores(held_out: "TokenStatistics", num_bins: int) -> dict[str, float]:
    """Calibration of the next held-out response token beside the accuracy; shares are 0 to 1, entropy in nats."""
    from sftmix.evaluation.offline.calibration import calibration_error

    means = {column: float(figure.double().mean()) for column, figure in _per_token(held_out).items()}
    return means | {"ECE": calibration_error(held_out.prediction, num_bins)}


def _per_token(held_out: "TokenStatistics") -> "dict[str, Tensor]":
    """Figures of a token that are means over tokens; the calibration error is none, its bins are of all of them."""
    prediction = held_out.prediction
    return {
        "accuracy": prediction.is_correct,
        "top probability": prediction.top_probability,
        "Brier": prediction.brier,
        "entropy": prediction.entropy,
    }


def linearity_score(between: "Linearity") -> float:
    """The linearity gap in nats per mixed position, a mean over lambdas."""
    return math.fsum(between.gap.values()) / len(between.gap)


def weighted_questions(
    held_out: "TokenStatistics", parts: Mapping[str, Subset], between: "Linearity | None"
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """What each held-out example, or pair of them, brought to the scores that are per token; and how much it counts.

    Examples weigh as many as they have response tokens, pairs as many as they have mixed positions. A pair at other
    lambdas is another question.
    """
    losses = {i: nats / held_out.num_tokens[i] for i, nats in held_out.nll.items()}
    questions = {column: {i: losses[i] for i in ids} for column, ids in _loss_columns(held_out, parts).items()}
    questions |= {column: held_out.by_example(figure) for column, figure in _per_token(held_out).items()}
    weights = {column: {i: float(held_out.num_tokens[i]) for i in of} for column, of in questions.items()}
    if between is not None:
        at = ", ".join(f"{lam:g}" for lam in between.gap)
        names = {pair: f"{pair[0]} with {pair[1]} at {at}" for pair in between.positions}
        questions[LINEARITY] = {name: between.of_pairs[pair] for pair, name in names.items()}
        weights[LINEARITY] = {name: float(between.positions[pair]) for pair, name in names.items()}
    return questions, weights


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
