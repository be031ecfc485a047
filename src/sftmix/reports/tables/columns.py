"""Columns of tables: the metric of each example, the paired difference of two recipes, and their cells."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.analysis.paired import Difference, difference_of_seeds, hierarchical_difference, mean_and_sd
from sftmix.analysis.verdict import ComparisonVerdict
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.provenance.runs import ExampleLosses
from sftmix.reports.diff import leaves_of
from sftmix.reports.page import Cell

HELD_OUT = "held-out loss"
OFFLINE = "offline"
LOWER_IS_BETTER = ("perplexity", "Brier", "ECE")  # Of the metrics of suite=offline
OF_WEIGHTS = ("model", "identity")  # Keys of settings, at any depth, that name the evaluated weights
OF_ANSWERS = ("answers.outputs", "answers.sha256")  # The file of answers, if answers are given instead of weights
LONGEST = 16  # Characters of a value that is printed in full. Of a longer value, eight are printed


class Column(NamedTuple):
    """What a metric measures. Metrics of different columns are never averaged."""

    suite: str
    judge: str | None
    benchmark: str  # The set of questions
    name: str  # Column of the paper's table
    lower_is_better: bool | None  # None if it is neither good nor bad, such as entropy or the length of answers

    @property
    def is_loss(self) -> bool:
        """Whether the metric is a loss in nats per token."""
        return self.suite == HELD_OUT or (self.suite == OFFLINE and self.name.partition(",")[0] == HELD_OUT)


class ExampleMetrics(NamedTuple):
    """A metric of one run by example."""

    values: dict[str, float]  # By example id; multiplied by the weight if there are weights
    weights: Mapping[str, float] | None = None  # Such as tokens, for a metric per token. None: a mean over examples
    raters: frozenset[str] = frozenset()  # The models that answered under the name of the judge
    settings: tuple[Mapping[str, Any], ...] = ()  # Settings of each round

    def weight(self, example: str) -> float:
        return 1 if self.weights is None else self.weights[example]


MetricPairs = Sequence[tuple[ExampleMetrics, ExampleMetrics]]  # Of ours and theirs, one pair per seed


class Paired(NamedTuple):
    """Runs of two recipes, paired by seed."""

    ours: list[float]  # Metric of our recipe under each seed
    theirs: list[float]  # Metric of the other recipe under the same seeds
    difference: Difference
    of_examples: list[float]  # Mean over seeds; multiplied by the weight if there are weights
    num_left_out: int  # Examples that not all runs have, or that have different weights
    num_others: int = 0  # Further runs of the one recipe whose scatter the interval is based on


def _lower_is_better(evaluation: Evaluation, name: str) -> bool | None:
    if evaluation.suite != OFFLINE:
        return name in evaluation.lower_is_better
    if name == "accuracy":
        return False
    return True if name in LOWER_IS_BETTER or name.partition(",")[0] == HELD_OUT else None


def read_columns(run: Path) -> dict[Column, ExampleMetrics]:
    """Return the metrics that suites measured for each question of a run, as means over rounds.

    Raises:
        InputError: If an evaluation cannot be read.
    """
    together: dict[Column, list[Evaluation]] = {}
    for found in read_evaluations(run):
        for name in found.questions:
            column = Column(found.suite, found.judge, found.benchmark, name, _lower_is_better(found, name))
            together.setdefault(column, []).append(found)
    return {column: mean_by_question(rounds, column.name) for column, rounds in together.items()}


def mean_by_question(rounds: Iterable[Evaluation], column: str) -> ExampleMetrics:
    """Return the mean of each question over the rounds that have it; multiplied by its weight if there are weights.

    The weights are means over rounds too, so that a question's value divided by its weight is its weighted mean.
    """
    rounds = list(rounds)
    found = [evaluation for evaluation in rounds if column in evaluation.questions]
    values, weights = dict[str, list[float]](), dict[str, list[float]]()
    for evaluation in found:
        weight_of = evaluation.weights.get(column, {})
        for question, value in evaluation.questions[column].items():
            weight = weight_of.get(question, 1.0)
            values.setdefault(question, []).append(value * weight)
            weights.setdefault(question, []).append(weight)
    return ExampleMetrics(
        _means(values),
        _means(weights) if any(column in evaluation.weights for evaluation in found) else None,
        frozenset[str]().union(*(evaluation.raters for evaluation in rounds)),
        tuple(evaluation.settings for evaluation in rounds),
    )


def _means(lists: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in lists.items()}


def held_out_metrics(loss: ExampleLosses, ids: Iterable[str] | None = None) -> ExampleMetrics:
    """Return the nats and tokens of held-out examples, of all if `ids` is None."""
    ids = list(loss.nll if ids is None else ids)
    return ExampleMetrics({i: loss.nll[i] for i in ids}, {i: loss.num_tokens[i] for i in ids})


def disagreement(pairs: MetricPairs) -> str | None:
    """Return why metrics cannot be compared: several models under one judge's name, or different settings; or None."""
    found = [metrics for pair in pairs for metrics in pair]
    raters = frozenset[str]().union(*(metrics.raters for metrics in found))
    return mixed_judges(raters) or mixed_settings(settings for metrics in found for settings in metrics.settings)


def mixed_judges(raters: frozenset[str]) -> str | None:
    """Return a note if several models answered under one judge's name, or None. Their scores are never averaged."""
    return f"one judge's name stood for {' and '.join(sorted(raters))}" if len(raters) > 1 else None


def mixed_settings(settings: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the settings in which evaluations differ, key by key, or None if the evaluations agree.

    Settings that name the evaluated weights are ignored, because the weights of the runs of a table differ. All other
    keys count, also a key that only one of the evaluations has.
    """
    found = [
        {
            key: json.dumps(value, sort_keys=True)
            for key, value in leaves_of(of_one).items()
            if key.rpartition(".")[2] not in OF_WEIGHTS and key not in OF_ANSWERS
        }
        for of_one in settings
    ]
    differing = []
    for key in dict.fromkeys(key for of_one in found for key in of_one):
        values = sorted({of_one.get(key, "absent") for of_one in found})
        if len(values) > 1:
            texts = (value.strip('"') for value in values)
            short = (text if len(text) <= LONGEST else f"{text[:8]}.." for text in texts)
            differing.append(f"{key} ({', '.join(short)})")
    return f"evaluated under other settings: {', '.join(differing)}" if differing else None


def pair_up(pairs: MetricPairs, others: Sequence[ExampleMetrics] = ()) -> Paired | None:
    """Return the difference of two recipes over the examples that all runs have with equal weight, or None.

    An example with another weight in one of the runs is another example: its text was cut at another token.

    Args:
        pairs: Metrics of ours and theirs, one pair per seed.
        others: Metrics of further runs of the one recipe that both runs of a single pair belong to. Runs without all
            examples do not count. A single further run has no scatter and does not count either.
    """
    every = [metrics for pair in pairs for metrics in pair]
    known = [set(metrics.values) for metrics in every] or [set()]
    ids = sorted(i for i in set.intersection(*known) if len({metrics.weight(i) for metrics in every}) == 1)
    if not ids:
        return None
    weights = None if all(metrics.weights is None for metrics in every) else [every[0].weight(i) for i in ids]
    total = len(ids) if weights is None else sum(weights)
    by_seed = [[ours.values[i] - theirs.values[i] for i in ids] for ours, theirs in pairs]
    further = [o for o in others if all(i in o.values and o.weight(i) == every[0].weight(i) for i in ids)]
    if len(further) > 1:
        difference = difference_of_seeds([[run.values[i] for i in ids] for run in (*every, *further)], weights)
    else:
        difference = hierarchical_difference(by_seed, weights)
    return Paired(
        [sum(ours.values[i] for i in ids) / total for ours, _ in pairs],
        [sum(theirs.values[i] for i in ids) / total for _, theirs in pairs],
        difference,
        [sum(of_example) / len(pairs) for of_example in zip(*by_seed, strict=True)],
        len(set.union(*known)) - len(ids),
        len(further),
    )


def difference_of_losses(
    pairs: Sequence[tuple[ExampleLosses, ExampleLosses]], ids: Sequence[str] | None = None
) -> Difference | None:
    """Return the difference of held-out losses in nats per token, one pair per seed, over all examples or `ids`."""
    paired = pair_up([(held_out_metrics(ours, ids), held_out_metrics(theirs, ids)) for ours, theirs in pairs])
    return None if paired is None else paired.difference


def mean_cell(values: Sequence[float], decimals: int, *, show_n: bool = False) -> Cell:
    """Return a mean with its standard deviation, if there are several values, and the number of values."""
    mean, sd = mean_and_sd(values)
    text = f"{mean:.{decimals}f}" + ("" if sd is None else f" ± {sd:.{decimals}f}")
    return Cell(f"{text} ({len(values)})" if show_n else text, value=mean, sd=sd, n=len(values))


def difference_cell(
    found: Difference,
    decimals: int = 4,
    *,
    verdict: ComparisonVerdict | None = None,
    show_n: bool = False,
    show_sd: bool = False,
) -> Cell:
    """Return a difference with its 95% interval and the verdict, whose reason becomes the note of the cell.

    Args:
        show_n: Show the number of examples and seeds.
    """
    low, high = (None, None) if math.isnan(found.low) else (found.low, found.high)
    sd = mean_and_sd(found.of_seeds)[1]
    text = f"{found.mean:+.{decimals}f}"
    if low is not None:
        text += f" [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    if show_sd and sd is not None:
        text += f", sd {sd:.{decimals}f}"
    if show_n:
        text += f" ({found.num_examples:,}, {len(found.of_seeds)})"
    if verdict is not None:
        text += f": {verdict.words}"
    note = None if verdict is None else verdict.reason
    return Cell(text, note=note, value=found.mean, sd=sd, n=len(found.of_seeds), low=low, high=high)
