"""The scores of suite=offline, computed from predictions and answers of a model, and the subsets of examples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sftmix.evaluation.generators.answering import Answer
from sftmix.evaluation.results import LOSS, loss_of

if TYPE_CHECKING:
    from torch import Tensor

    from sftmix.evaluation.offline.token_statistics import Linearity, TokenStatistics

ALL = "all"
LINEARITY = "linearity gap"  # between a confident and an unconfident example
RANDOM_LINEARITY = "linearity gap, random pairs"  # another quantity: pairs are drawn without any confidence
SUBSETS = ("confident", "unconfident")
TERCILES = ("most confident third", "middle third", "least confident third")


class Subset(NamedTuple):
    """Ids of the held-out examples of a subset, and of the training examples of the same subset."""

    val: list[str]
    trained: list[str]


def by_confidence(confidence: Mapping[str, float], names: tuple[str, ...]) -> dict[str, list[str]]:
    """Divide ids into subsets of equal size, the most confident first.

    Equal confidences are ordered by id, so that the result does not depend on the order of the examples. A remainder
    goes to the least confident subsets: two subsets are those of Step 1 of section 3.3.

    Args:
        confidence: By id; higher is more confident.
    """
    order = sorted(confidence, key=lambda i: (-confidence[i], i))
    bounds = [k * len(order) // len(names) for k in range(len(names) + 1)]
    return {name: order[bounds[k] : bounds[k + 1]] for k, name in enumerate(names)}


def subsets_of(
    val: Sequence[str], train: Sequence[str], confidence: Mapping[str, float], gap: Subset
) -> dict[str, Subset]:
    """Return the subsets whose losses are given: all examples and, if their confidence is known, subsets and terciles.

    Held-out examples are ranked among themselves, and so are training examples: the reference was trained on the
    latter, and is more confident of all of them.

    Args:
        val: Held-out examples.
        train: Training examples, whether the run was trained on them or not.
        gap: Examples of the gap over all. If a run was trained on one subset only, these are of that subset.
    """
    subsets = {ALL: gap}
    sides = [{i: confidence[i] for i in ids if i in confidence} for ids in (val, train)]
    for names in (SUBSETS, TERCILES):
        of_val, of_train = (by_confidence(side, names) for side in sides)
        subsets |= {name: Subset(of_val[name], of_train[name]) for name in names if of_val[name]}
    return subsets


def measured(statistics: "TokenStatistics", ids: Sequence[str]) -> list[str]:
    """Return the ids that have statistics."""
    return [i for i in ids if i in statistics.nll]


def token_scores(held_out: "TokenStatistics", num_bins: int) -> dict[str, float]:
    """Return the loss in nats per response token, perplexity, and calibration of the next response token.

    Accuracy, top probability and ECE are 0 to 1, Brier is 0 to 2, entropy is in nats.
    """
    from sftmix.evaluation.offline.metrics import calibration_error

    loss = held_out.loss(list(held_out.nll))
    means = {column: float(values.double().mean()) for column, values in _per_token(held_out).items()}
    ece = calibration_error(held_out.prediction, num_bins)
    return {LOSS: loss, "perplexity": math.exp(loss), **means, "ECE": ece}


def subset_scores(
    held_out: "TokenStatistics", trained: "TokenStatistics", subsets: Mapping[str, Subset]
) -> dict[str, float]:
    """Return the held-out loss, and held-out minus training loss, of each subset in nats per response token."""
    scores = {}
    for name, subset in subsets.items():
        val, train = measured(held_out, subset.val), measured(trained, subset.trained)
        if val and name != ALL:
            scores[loss_of(name)] = held_out.loss(val)
        if val and train:
            scores["gap" if name == ALL else f"gap, {name}"] = held_out.loss(val) - trained.loss(train)
    return scores


def _loss_columns(held_out: "TokenStatistics", subsets: Mapping[str, Subset]) -> dict[str, list[str]]:
    """Return the examples of each held-out loss by the name of the score."""
    columns = {loss_of(name): measured(held_out, subset.val) for name, subset in subsets.items() if name != ALL}
    return {LOSS: list(held_out.nll), **{column: ids for column, ids in columns.items() if ids}}


def _per_token(held_out: "TokenStatistics") -> "dict[str, Tensor]":
    """Return the values of each token whose mean is a score. The calibration error is not a mean over tokens."""
    prediction = held_out.prediction
    return {
        "accuracy": prediction.is_correct,
        "top probability": prediction.top_probability,
        "Brier": prediction.brier,
        "entropy": prediction.entropy,
    }


def linearity_score(between: "Linearity") -> float:
    """Return the linearity gap in nats per mixed token, a mean over lambdas."""
    return math.fsum(between.gap.values()) / len(between.gap)


def linearity_record(between: "Linearity | None") -> dict[str, Any] | None:
    """Return the linearity gap by lambda as a result file records it."""
    if between is None:
        return None
    return {
        "lam": list(between.gap),
        "gap": list(between.gap.values()),
        "label_entropy": list(between.label_entropy.values()),
        "positions": between.total,
    }


def weighted_questions(
    held_out: "TokenStatistics",
    subsets: Mapping[str, Subset],
    between: "Linearity | None",
    linearity_column: str = LINEARITY,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return the value of each held-out example, or pair, for the scores per token; and its weight.

    The weight of an example is its number of response tokens. The weight of a pair is its number of mixed tokens. A
    pair at other lambdas is another question.
    """
    losses = {i: nats / held_out.num_tokens[i] for i, nats in held_out.nll.items()}
    questions = {column: {i: losses[i] for i in ids} for column, ids in _loss_columns(held_out, subsets).items()}
    questions |= {column: held_out.by_example(values) for column, values in _per_token(held_out).items()}
    weights = {column: {i: float(held_out.num_tokens[i]) for i in of} for column, of in questions.items()}
    if between is not None:
        at = ", ".join(f"{lam:g}" for lam in between.gap)
        names = {pair: f"{pair[0]} with {pair[1]} at {at}" for pair in between.of_pairs}
        questions[linearity_column] = {name: between.of_pairs[pair] for pair, name in names.items()}
        weights[linearity_column] = {name: float(between.num_mixed_tokens[pair]) for pair, name in names.items()}
    return questions, weights


def answer_scores(
    ids: Sequence[str], answers: Sequence[Answer]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return length and repetition of answers; and the values of each example for scores that are means over answers.

    Shares are 0 to 1. Answers that are too short to repeat themselves are left out of the repetition.
    """
    by_id = dict(zip(ids, answers, strict=True))
    repeated = {i: repetition(answer.text) for i, answer in by_id.items()}
    questions = {
        "answer tokens": {i: float(answer.num_tokens) for i, answer in by_id.items()},
        "cut by length": {i: float(answer.finish == "length") for i, answer in by_id.items()},
        "4-gram repetition": {i: share for i, share in repeated.items() if share is not None},
    }
    questions = {name: values for name, values in questions.items() if values}
    scores = {name: math.fsum(values.values()) / len(values) for name, values in questions.items()}
    over_all = {f"distinct-{n}": distinct((answer.text for answer in answers), n) for n in (1, 2)}
    return scores | {name: share for name, share in over_all.items() if share is not None}, questions


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Return the share of different n-grams of words among those of all texts, 0 to 1 (Li et al., 2016).

    The share falls with the length of the texts, so it compares models that were asked the same. It is None if no text
    has n words.
    """
    found = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(found)) / len(found) if found else None


def repetition(text: str, n: int = 4) -> float | None:
    """Return the share of a text's n-grams that occurred in it before, 0 to 1; None if it has fewer than n words."""
    found = _ngrams(text, n)
    return 1 - len(set(found)) / len(found) if found else None
