"""Scores of suites in the columns of the paper, separately for each judge and benchmark, and of `suite=offline`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from sftmix.evaluation.results import LOSS, OWN_HELD_OUT, Evaluation
from sftmix.reports.page import Block, Cell
from sftmix.reports.tables.columns import OFFLINE, mean_cell, mixed_judges, mixed_settings
from sftmix.reports.tables.groups import Group
from sftmix.reports.tables.paper import Suite

ASKED = ("num_shots", "max_tokens", "adds_bos", "template_sha256", "dtype")  # Equal for all benchmarks of one mean
LINEARITY = ("linearity gap", "linearity gap, random pairs")
OFFLINE_COLUMNS = (LOSS, "accuracy", "ECE", "Brier", "entropy", "gap", *LINEARITY)
SET_BY = {"ECE": "num_bins"} | dict.fromkeys(LINEARITY, "lams")  # settings of which the metric is another function


class Variant(NamedTuple):
    """A judge and the questions of a suite. Evaluations of different variants are never averaged."""

    suite: Suite
    judge: str | None
    benchmark: str | None  # None for the paper's questions
    note: str | None  # Names a judge or benchmark that is not the paper's

    def has(self, evaluation: Evaluation) -> bool:
        benchmark = None if evaluation.benchmark in self.suite.benchmarks else evaluation.benchmark
        return (evaluation.suite, evaluation.judge, benchmark) == (self.suite.name, self.judge, self.benchmark)

    def evaluations_of(self, group: Group, column: str) -> list[tuple[str, Evaluation]]:
        """Return the evaluations with their runs that have a column, or a column of its mean."""
        columns = {column, *(self.suite.columns if column == "mean" else ())}
        return [(run, e) for run, e in group.evaluations if self.has(e) and not columns.isdisjoint(e.scores)]


VariantRow = Mapping[str, Variant | None]  # The k-th variant of each column, or None if a column has fewer


def variants_of(suite: Suite, groups: Sequence[Group]) -> list[Variant]:
    """Return the judges and benchmarks that our runs were evaluated with, the paper's first."""
    evaluations = [e for group in groups for _, e in group.evaluations if e.suite == suite.name]
    found = {(e.judge, None if e.benchmark in suite.benchmarks else e.benchmark) for e in evaluations}
    variants = []
    for judge, benchmark in sorted(found, key=lambda v: (not suite.has_judge(v[0]), v[1] is not None, str(v))):
        notes = []
        if not suite.has_judge(judge):
            notes.append(f"judge {judge or 'none'}, the paper's is {suite.judge or 'none'}")
        elif len(found) > 1 and judge is not None:
            notes.append(f"judge {judge}")
        if benchmark is not None:
            notes.append(f"benchmark {benchmark}, the paper's is {', '.join(suite.benchmarks)}")
        variants.append(Variant(suite, judge, benchmark, "; ".join(notes) or None))
    return variants


def score_cell(variant: Variant | None, column: str, group: Group | None, command: str | None, *, first: bool) -> Cell:
    """Return the mean of a column under a judge and benchmark with its (seeds x rounds), or why there is none.

    Each run counts once, as the mean of its rounds. The standard deviation is over runs; for one run, over its rounds.

    Args:
        first: Whether this is the first row of the group. Only this row says why there is no mean.
    """
    if group is None:
        return Cell("not run", note=f"not run: {command}") if first else Cell()
    if unfinished := group.unfinished():
        return unfinished if first else Cell()
    if variant is None:
        return Cell("not evaluated") if first else Cell()
    found = variant.evaluations_of(group, column)
    values = _values(variant.suite, column, found)
    if not values:
        return Cell("not evaluated")
    if mixed := unlike([evaluation for _, evaluation in found]):
        return Cell("no mean", note=mixed)
    rounds = list(values.values())
    single = rounds[0] if len(rounds) == 1 else None  # rounds of one run are not independent runs
    cell = mean_cell(single or [sum(of_run) / len(of_run) for of_run in rounds], variant.suite.decimals)
    fewest, most = min(map(len, rounds)), max(map(len, rounds))
    number = f"{len(rounds)} x {most if fewest == most else f'{fewest} to {most}'}"
    return replace(cell, text=f"{cell.text} ({number})", note=variant.note)


def unlike(evaluations: Sequence[Evaluation]) -> str | None:
    """Return why evaluations cannot be averaged: several models under one judge's name, or different settings; or None.

    Evaluations of the same benchmark must agree in all settings. Evaluations of different benchmarks must agree in
    `ASKED`.
    """
    if mixed := mixed_judges(frozenset[str]().union(*(evaluation.raters for evaluation in evaluations))):
        return mixed
    together: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        together.setdefault(evaluation.benchmark, []).append(evaluation)
    mixed_of = [mixed_settings(e.settings for e in of_one) for of_one in together.values()]
    mixed_of.append(mixed_settings({key: e.settings.get(key) for key in ASKED} for e in evaluations))
    return next(filter(None, mixed_of), None)


def unlike_groups(variant: Variant, column: str, groups: Sequence[Group]) -> str | None:
    """Return why the scores of groups under a judge and benchmark cannot be compared, or None."""
    of_groups = [variant.evaluations_of(group, column) for group in groups]
    valued = [[evaluation for _, evaluation in found] for found in of_groups if _values(variant.suite, column, found)]
    return unlike([evaluation for found in valued if unlike(found) is None for evaluation in found])


def _values(suite: Suite, column: str, found: Sequence[tuple[str, Evaluation]]) -> dict[str, list[float]]:
    """Return a value per round of each run. A missing mean is computed if the round has all other columns."""
    by_round: dict[tuple[str, int], dict[str, float]] = {}
    for run, evaluation in found:
        by_round.setdefault((run, evaluation.round), {}).update(evaluation.scores)
    values: dict[str, list[float]] = {}
    others = [name for name in suite.columns if name != "mean"]
    for (run, _), scores in by_round.items():
        if column in scores:
            values.setdefault(run, []).append(scores[column])
        elif column == "mean" and all(other in scores for other in others):
            values.setdefault(run, []).append(sum(scores[other] for other in others) / len(others))
    return values


def offline_block(rows: Iterable[tuple[tuple[Cell, ...], Group]]) -> Block | None:
    """Return what `suite=offline` measured: means over seeds, a row per benchmark; None if no run has such a result."""
    of_rows = [(labels, [e for _, e in group.evaluations if e.suite == OFFLINE]) for labels, group in rows]
    found = [(labels, e) for labels, some in of_rows for e in sorted(some, key=lambda e: e.benchmark)]
    columns = tuple(column for column in OFFLINE_COLUMNS if any(column in e.scores for _, e in found))
    title = "Without a judge, over held-out examples: losses, entropy and gaps in nats (seeds)"
    block = Block(title, ("", "row"), columns)
    together: dict[tuple[tuple[Cell, ...], str], list[Evaluation]] = {}
    for labels, evaluation in found:
        together.setdefault((labels, evaluation.benchmark), []).append(evaluation)
    for (labels, benchmark), same in together.items():
        note = None if benchmark == OWN_HELD_OUT else f"over {benchmark}"
        block.rows.append((*labels[:-1], replace(labels[-1], note=note), *(_offline_cell(same, c) for c in columns)))
    return block if block.rows else None


def _offline_cell(found: Sequence[Evaluation], column: str) -> Cell:
    having = [evaluation for evaluation in found if column in evaluation.scores]
    if not having:
        return Cell()
    if len({evaluation.settings.get("examples_sha256") for evaluation in having}) > 1:
        return Cell("no mean", note="the files of the set had other examples")
    key = SET_BY.get(column)
    values = {str(evaluation.settings.get(key)) for evaluation in having} if key else set()
    if len(values) > 1:
        return Cell("no mean", note=f"suite.{key} was {' and '.join(sorted(values))}")
    cell = mean_cell([evaluation.scores[column] for evaluation in having], 4, show_n=True)
    records = [evaluation.record for evaluation in having]
    # `trained_half` is the name of the field in result files of earlier versions
    subsets = [record.get("trained_subset", record.get("trained_half")) for record in records]
    trained_on = {str(subset) for subset in subsets if subset is not None}
    if column != "gap" or not trained_on:
        return cell
    return replace(cell, note=f"over the {' and '.join(sorted(trained_on))} subset")
