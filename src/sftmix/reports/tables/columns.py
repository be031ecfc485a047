"""What runs measured example by example, and pairs of runs beside each other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.analysis.paired import Difference, difference_of_seeds, hierarchical_difference
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.reports.held_out import HeldOutLoss
from sftmix.reports.page import Cell
from sftmix.reports.tables.config_diff import mixed_settings
from sftmix.reports.tables.groups import figure

HELD_OUT = "held-out loss"
SCORED_UPWARD = ("mt_bench", "alpaca_eval", "medical")
LOWER_IS_BETTER = ("perplexity", "Brier", "ECE")


class Column(NamedTuple):
    """What figures are of: those of two columns are never averaged.

    Attributes:
        suite: that found them.
        judge: whose scores they are, or None.
        benchmark: which questions.
        name: the column of the paper's table.
    """

    suite: str
    judge: str | None
    benchmark: str
    name: str

    @property
    def lower_is_better(self) -> bool | None:
        """Direction of the column; None if it is neither good nor bad, such as entropy or the length of answers."""
        if self.suite in SCORED_UPWARD or self.name == "accuracy":
            return False
        return True if self.name in LOWER_IS_BETTER or HELD_OUT in (self.suite, self.name.partition(",")[0]) else None


class Figures(NamedTuple):
    """What each example brought to one run.

    Attributes:
        values: by the example's id; times its weight where there are weights.
        weights: of each example, mostly its tokens: the figure of a run is then per token. None: it is the mean over
            examples.
        raters: the models that a judge's name stood for.
        settings: those of each round.
    """

    values: dict[str, float]
    weights: Mapping[str, float] | None = None
    raters: frozenset[str] = frozenset()
    settings: tuple[Mapping[str, Any], ...] = ()


class Paired(NamedTuple):
    """Runs of two recipes beside each other.

    Attributes:
        ours: the figure of each seed.
        theirs: that of the other recipe under the same seeds.
        difference: ours minus theirs.
        of_examples: the difference of each example, the mean over seeds; times its weight where it has one.
        num_left_out: examples that not all of the runs have, or that do not weigh the same in all of them.
        num_others: runs of their one recipe whose scatter the interval goes by.
    """

    ours: list[float]
    theirs: list[float]
    difference: Difference
    of_examples: list[float]
    num_left_out: int
    num_others: int = 0


def read_columns(run: Path) -> dict[Column, Figures]:
    """What suites found of a run by question: the mean over rounds of each.

    Raises:
        InputError: an evaluation cannot be read.
    """
    together: dict[Column, list[Evaluation]] = {}
    for found in read_evaluations(run):
        for name in found.questions:
            together.setdefault(Column(found.suite, found.judge, found.benchmark, name), []).append(found)
    return {column: mean_by_question(rounds, column.name) for column, rounds in together.items()}


def mean_by_question(rounds: Iterable[Evaluation], column: str) -> Figures:
    """What each question brought, the mean over the rounds that have it; times its weight where any round has weights.

    Of several rounds the weights too are means, so that a question's value by its weight is its weighted mean.
    """
    rounds = list(rounds)
    found = [evaluation for evaluation in rounds if column in evaluation.questions]
    brought, weighed = dict[str, list[float]](), dict[str, list[float]]()
    for evaluation in found:
        weights = evaluation.weights.get(column, {})
        for question, value in evaluation.questions[column].items():
            weight = weights.get(question, 1.0)
            brought.setdefault(question, []).append(value * weight)
            weighed.setdefault(question, []).append(weight)
    return Figures(
        _means(brought),
        _means(weighed) if any(column in evaluation.weights for evaluation in found) else None,
        frozenset[str]().union(*(evaluation.raters for evaluation in rounds)),
        tuple(evaluation.settings for evaluation in rounds),
    )


def _means(lists: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in lists.items()}


def held_out_figures(loss: HeldOutLoss, ids: Sequence[str]) -> Figures:
    """Nats of held-out examples with their tokens."""
    return Figures({i: loss.nll[i] for i in ids}, {i: loss.num_tokens[i] for i in ids})


def disagreement(pairs: Sequence[tuple[Figures, Figures]]) -> str | None:
    """What is said of figures that several models gave under one judge's name, or that other settings are of.

    None where one model gave them, under the same settings.
    """
    found = [figures for pair in pairs for figures in pair]
    raters = frozenset[str]().union(*(figures.raters for figures in found))
    return mixed_words(raters) or mixed_settings(settings for figures in found for settings in figures.settings)


def mixed_words(raters: frozenset[str]) -> str | None:
    """What is said where these are several: no average and no difference is over them."""
    return f"one judge's name stood for {' and '.join(sorted(raters))}" if len(raters) > 1 else None


def pair_up(pairs: Sequence[tuple[Figures, Figures]], others: Sequence[Figures] = ()) -> Paired | None:
    """The difference of two recipes over the examples that all runs have alike; None where there is none.

    An example that has another weight in one of the runs is another one: a text that was cut elsewhere, say.

    Args:
        pairs: figures of ours and theirs, a pair a seed.
        others: further runs of the one recipe that the two of one pair are of; those without all examples do not count.
            One has no scatter, and does not either.
    """
    if not pairs:
        return None
    every = [figures for pair in pairs for figures in pair]
    known = [set(figures.values) for figures in every]
    ids = sorted(i for i in set.intersection(*known) if len({_weight(figures, i) for figures in every}) == 1)
    if not ids:
        return None
    weights = None if all(figures.weights is None for figures in every) else [_weight(every[0], i) for i in ids]
    total = len(ids) if weights is None else sum(weights)
    by_seed = [[ours.values[i] - theirs.values[i] for i in ids] for ours, theirs in pairs]
    alike = [
        other for other in others if all(i in other.values and _weight(other, i) == _weight(every[0], i) for i in ids)
    ]
    beside = [[other.values[i] for i in ids] for other in alike]
    if len(beside) > 1:
        (two,) = pairs
        difference = difference_of_seeds([*([run.values[i] for i in ids] for run in two), *beside], weights)
    else:
        difference = hierarchical_difference(by_seed, weights)
    return Paired(
        [sum(ours.values[i] for i in ids) / total for ours, _ in pairs],
        [sum(theirs.values[i] for i in ids) / total for _, theirs in pairs],
        difference,
        [sum(of_example) / len(pairs) for of_example in zip(*by_seed, strict=True)],
        len(set.union(*known)) - len(ids),
        len(beside),
    )


def _weight(figures: Figures, example: str) -> float:
    return 1 if figures.weights is None else figures.weights[example]


def difference_cell(paired: Paired, decimals: int, *, show_n: bool = False) -> Cell:
    """A difference with its interval, and for CSV its standard deviation over seeds.

    Args:
        paired: runs of two recipes.
        decimals: that are shown.
        show_n: say how many examples and seeds it is over.
    """
    found = paired.difference
    low, high = (None if math.isnan(end) else end for end in (found.low, found.high))
    text = f"{found.mean:+.{decimals}f}"
    if low is not None:
        text += f" [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    if show_n:
        text += f" ({found.num_examples:,}, {len(found.of_seeds)})"
    sd = figure(found.of_seeds, decimals).sd
    return Cell(text, value=found.mean, sd=sd, n=len(found.of_seeds), low=low, high=high)
