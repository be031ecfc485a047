"""What runs measured example by example, and pairs of runs beside each other."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sftmix.analysis.paired import Difference, difference_of_seeds, hierarchical_difference
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.reports.groups import figure
from sftmix.reports.held_out import HeldOutLoss
from sftmix.reports.page import Cell


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


class Figures(NamedTuple):
    """What each example brought to one run.

    Attributes:
        values: by the example's id; sums over its tokens where there are weights.
        weights: tokens of each example: the figure of a run is then per token. None: it is the mean over examples.
        raters: the models that a judge's name stood for.
    """

    values: dict[str, float]
    weights: dict[str, int] | None = None
    raters: frozenset[str] = frozenset()


class Paired(NamedTuple):
    """Runs of two recipes beside each other.

    Attributes:
        ours: the figure of each seed.
        theirs: that of the other recipe under the same seeds.
        difference: ours minus theirs.
        of_examples: the difference of each example, the mean over seeds; times its tokens where it has weights.
        num_left_out: examples that not all of the runs have.
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
    """What each question brought, the mean over the rounds that have it."""
    brought: dict[str, list[float]] = {}
    raters: frozenset[str] = frozenset()
    for found in rounds:
        raters |= found.raters
        for question, value in found.questions.get(column, {}).items():
            brought.setdefault(question, []).append(value)
    return Figures({question: sum(values) / len(values) for question, values in brought.items()}, None, raters)


def held_out_figures(loss: HeldOutLoss, ids: Sequence[str]) -> Figures:
    """Nats of held-out examples with their tokens."""
    return Figures({i: loss.nll[i] for i in ids}, {i: loss.num_tokens[i] for i in ids})


def mixed_raters(pairs: Iterable[tuple[Figures, Figures]]) -> str | None:
    """What is said of scores that one judge's name stands for and several models gave; None where one did."""
    return mixed_words(frozenset[str]().union(*(figures.raters for pair in pairs for figures in pair)))


def mixed_words(raters: frozenset[str]) -> str | None:
    """What is said where these are several: no average and no difference is over them."""
    return f"one judge's name stood for {' and '.join(sorted(raters))}" if len(raters) > 1 else None


def pair_up(pairs: Sequence[tuple[Figures, Figures]], others: Sequence[Figures] = ()) -> Paired | None:
    """The difference of two recipes over the examples that all runs have; None where there is none.

    Args:
        pairs: figures of ours and theirs, a pair a seed.
        others: further runs of the one recipe that the two of one pair are of; those without all examples do not count.
            One has no scatter, and does not either.
    """
    if not pairs:
        return None
    known = [set(figures.values) for pair in pairs for figures in pair]
    ids = sorted(set.intersection(*known))
    if not ids:
        return None
    weights = pairs[0][0].weights
    tokens = None if weights is None else [weights[i] for i in ids]
    total = len(ids) if tokens is None else sum(tokens)
    by_seed = [[ours.values[i] - theirs.values[i] for i in ids] for ours, theirs in pairs]
    beside = [[other.values[i] for i in ids] for other in others if other.values.keys() >= set(ids)]
    if len(beside) > 1:
        (two,) = pairs
        difference = difference_of_seeds([*([run.values[i] for i in ids] for run in two), *beside], tokens)
    else:
        difference = hierarchical_difference(by_seed, tokens)
    return Paired(
        [sum(ours.values[i] for i in ids) / total for ours, _ in pairs],
        [sum(theirs.values[i] for i in ids) / total for _, theirs in pairs],
        difference,
        [sum(of_example) / len(pairs) for of_example in zip(*by_seed, strict=True)],
        len(set.union(*known)) - len(ids),
        len(beside),
    )


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
