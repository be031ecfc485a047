"""Scores of suites in the columns of the paper, separately for each judge and benchmark, and of `suite=offline`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from sftmix.evaluation.results import Evaluation
from sftmix.reports.page import Block, Cell
from sftmix.reports.tables.columns import mean_cell, mixed_judges, mixed_settings
from sftmix.reports.tables.groups import Group
from sftmix.reports.tables.paper import Suite, read_paper

Variant = tuple[str | None, str | None]  # judge; benchmark, None for the paper's
ASKED = ("num_shots", "max_tokens", "adds_bos", "template_sha256", "dtype")  # equal for all benchmarks of one mean
OFFLINE = "offline"
OFFLINE_COLUMNS = ("accuracy", "ECE", "Brier", "entropy", "gap", "linearity gap")
SET_BY = {"ECE": "num_bins", "linearity gap": "lams"}  # another value of this setting makes another metric


def variants_of(suite: Suite, groups: Sequence[Group]) -> list[Variant]:
    """Return the judges and benchmarks that our runs were evaluated with, the paper's first."""
    found = {variant_of(suite, e) for group in groups for _, e in group.evaluations if e.suite == suite.name}
    return sorted(found, key=lambda v: (not suite.has_judge(v[0]), v[1] is not None, str(v)))


def variant_of(suite: Suite, evaluation: Evaluation) -> Variant:
    """Return the judge and benchmark of an evaluation; evaluations of two variants are never averaged."""
    return evaluation.judge, None if evaluation.benchmark in suite.benchmarks else evaluation.benchmark


def score_cell(
    variants: Mapping[str, Sequence[Variant]], column: str, group: Group | None, command: str | None, k: int
) -> Cell:
    """Return a column under the k-th judge and benchmark, each run the mean of its rounds, or why there is none."""
    if group is None:
        return Cell("not run", note=f"not run: {command}") if k == 0 else Cell()
    unfinished = group.unfinished()
    if unfinished is not None:
        return unfinished if k == 0 else Cell()
    suite = read_paper().suite_of(column)
    known = variants[suite.name]
    if k >= len(known):
        return Cell("not evaluated") if k == 0 else Cell()
    found = _evaluations_of(suite, known[k], column, group)
    values = _values(suite, column, found)
    if not values:
        return Cell("not evaluated")
    if mixed := unlike([evaluation for _, evaluation in found]):
        return Cell("no mean", note=mixed)
    cell = mean_of_runs(list(values.values()), suite.decimals)
    return replace(cell, note=variant_note(suite, known[k], len(known) > 1))


def _evaluations_of(suite: Suite, variant: Variant, column: str, group: Group) -> list[tuple[str, Evaluation]]:
    """Return the evaluations of a suite under a judge and benchmark that have a column, or a column of its mean."""
    columns = {column, *(suite.columns if column == "mean" else ())}
    return [
        (run, evaluation)
        for run, evaluation in group.evaluations
        if evaluation.suite == suite.name
        and variant_of(suite, evaluation) == variant
        and not columns.isdisjoint(evaluation.scores)
    ]


def unlike(evaluations: Sequence[Evaluation]) -> str | None:
    """Return why evaluations cannot be averaged: several models under one judge's name, or different settings; or None.

    Evaluations of the same benchmark must agree in all settings. Evaluations of different benchmarks must agree in how
    questions are asked.
    """
    if mixed := mixed_judges(frozenset[str]().union(*(evaluation.raters for evaluation in evaluations))):
        return mixed
    together: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        together.setdefault(evaluation.benchmark, []).append(evaluation)
    mixed_of = [mixed_settings(e.settings for e in of_one) for of_one in together.values()]
    mixed_of.append(mixed_settings({key: e.settings.get(key) for key in ASKED} for e in evaluations))
    return next(filter(None, mixed_of), None)


def unlike_groups(
    variants: Mapping[str, Sequence[Variant]], column: str, groups: Sequence[Group], k: int
) -> str | None:
    """Return why the scores of groups under the k-th judge and benchmark cannot be compared, or None."""
    suite = read_paper().suite_of(column)
    known = variants[suite.name]
    if k >= len(known):
        return None
    of_groups = [_evaluations_of(suite, known[k], column, group) for group in groups]
    valued = [[evaluation for _, evaluation in found] for found in of_groups if _values(suite, column, found)]
    return unlike([evaluation for found in valued if unlike(found) is None for evaluation in found])


def _values(suite: Suite, column: str, found: Sequence[tuple[str, Evaluation]]) -> dict[str, list[float]]:
    """Return a value per round of each run. A missing mean is computed if the round has all other columns."""
    by_round: dict[tuple[str, int], dict[str, float]] = {}
    for run, evaluation in found:
        by_round.setdefault((run, evaluation.round), {}).update(evaluation.scores)
    values: dict[str, list[float]] = {}
    for (run, _), scores in by_round.items():
        others = [name for name in suite.columns if name != "mean"]
        if column in scores:
            values.setdefault(run, []).append(scores[column])
        elif column == "mean" and all(other in scores for other in others):
            values.setdefault(run, []).append(sum(scores[other] for other in others) / len(others))
    return values


def mean_of_runs(rounds: Sequence[Sequence[float]], decimals: int) -> Cell:
    """Return the mean of runs, each run the mean of its rounds, with their numbers as (seeds x rounds).

    Rounds of a run are not independent runs: the standard deviation is over runs; for a single run, over its rounds.

    Args:
        rounds: The values of each run.
        decimals: Number of decimals.
    """
    single = rounds[0] if len(rounds) == 1 else None
    cell = mean_cell(single or [sum(values) / len(values) for values in rounds], decimals)
    fewest, most = min(map(len, rounds)), max(map(len, rounds))
    number = f"{len(rounds)} x {most if fewest == most else f'{fewest} to {most}'}"
    return replace(cell, text=f"{cell.text} ({number})")


def variant_note(suite: Suite, variant: Variant, are_several: bool) -> str | None:
    """Return a note about a judge or benchmark that is not the paper's, or None."""
    judge, benchmark = variant
    notes = []
    if not suite.has_judge(judge):
        notes.append(f"judge {judge or 'none'}, the paper's is {suite.judge or 'none'}")
    elif are_several and judge is not None:
        notes.append(f"judge {judge}")
    if benchmark is not None:
        notes.append(f"benchmark {benchmark}, the paper's is {', '.join(suite.benchmarks)}")
    return "; ".join(notes) or None


def offline_block(rows: Iterable[tuple[tuple[Cell, ...], Group]]) -> Block | None:
    """Return what `suite=offline` measured: means over seeds, a row per benchmark; None if no run was evaluated so."""
    title = "Without a judge, over held-out examples: entropy and gaps in nats (seeds)"
    block = Block(title, ("", "row"), OFFLINE_COLUMNS)
    for labels, group in rows:
        found = [evaluation for _, evaluation in group.evaluations if evaluation.suite == OFFLINE]
        for benchmark in sorted({evaluation.benchmark for evaluation in found}):
            same = [evaluation for evaluation in found if evaluation.benchmark == benchmark]
            note = None if benchmark == "held-out" else f"over {benchmark}"
            cells = (_offline_cell(same, column) for column in OFFLINE_COLUMNS)
            block.rows.append((*labels[:-1], replace(labels[-1], note=note), *cells))
    return block if block.rows else None


def _offline_cell(found: Sequence[Evaluation], column: str) -> Cell:
    having = [evaluation for evaluation in found if column in evaluation.scores]
    if not having:
        return Cell()
    key = SET_BY.get(column)
    values = {str(evaluation.settings.get(key)) for evaluation in having} if key else set()
    if len(values) > 1:
        return Cell("no mean", note=f"suite.{key} was {' and '.join(sorted(values))}")
    cell = mean_cell([evaluation.scores[column] for evaluation in having], 4, show_n=True)
    subsets = {str(name) for evaluation in having if (name := evaluation.record.get("trained_half")) is not None}
    if column != "gap" or not subsets:
        return cell
    return replace(cell, note=f"over the {' and '.join(sorted(subsets))} subset")
