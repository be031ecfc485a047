"""What suites found of ours in the paper's columns, each judge and benchmark apart."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sftmix.evaluation.results import Evaluation
from sftmix.reports.page import Cell
from sftmix.reports.tables.columns import mixed_words
from sftmix.reports.tables.config_diff import mixed_settings
from sftmix.reports.tables.groups import Group, figure
from sftmix.reports.tables.paper import Paper, Suite

Variant = tuple[str | None, str | None]  # judge; benchmark, None where it is the paper's
ASKED = ("num_shots", "max_tokens", "adds_bos", "template_sha256", "dtype")  # alike for all benchmarks of one mean


def variants_of(suite: Suite, name: str, groups: Sequence[Group]) -> list[Variant]:
    """Judges and benchmarks that ours were evaluated by, each apart; the paper's first."""
    found = {variant_of(suite, e) for group in groups for _, e in group.evaluations if e.suite == name}
    return sorted(found, key=lambda v: (not suite.has_judge(v[0]), v[1] is not None, str(v)))


def variant_of(suite: Suite, evaluation: Evaluation) -> Variant:
    """Under whom, and on what, an evaluation is; two of them are never averaged."""
    return evaluation.judge, None if evaluation.benchmark in suite.benchmarks else evaluation.benchmark


def score_cell(
    paper: Paper,
    variants: Mapping[str, Sequence[Variant]],
    column: str,
    group: Group | None,
    command: str | None,
    k: int,
) -> Cell:
    """A column under the k-th judge and benchmark, or why there is nothing: each run the mean of its rounds."""
    if group is None:
        return Cell("not run", note=f"not run: {command}") if k == 0 else Cell()
    unfinished = group.unfinished()
    if unfinished is not None:
        return unfinished if k == 0 else Cell()
    suite_name = paper.suite_of(column)
    suite, known = paper.suites[suite_name], variants[suite_name]
    if k >= len(known):
        return Cell("not evaluated") if k == 0 else Cell()
    found = found_of(suite, suite_name, known[k], column, group)
    values = _values(suite, column, found)
    if not values:
        return Cell("not evaluated")
    if mixed := unlike([evaluation for _, evaluation in found]):
        return Cell("no mean", note=mixed)
    cell = figure_of_runs(list(values.values()), suite.decimals)
    return replace(cell, note=said_of(suite, known[k], len(known) > 1))


def found_of(suite: Suite, name: str, variant: Variant, column: str, group: Group) -> list[tuple[str, Evaluation]]:
    """What a cell is made of: a suite's evaluations under a judge and benchmark that have its column, or a part."""
    parts = {column, *(suite.columns if column == "mean" else ())}
    return [
        (run, evaluation)
        for run, evaluation in group.evaluations
        if evaluation.suite == name
        and variant_of(suite, evaluation) == variant
        and not parts.isdisjoint(evaluation.scores)
    ]


def unlike(evaluations: Sequence[Evaluation]) -> str | None:
    """What is said of evaluations by several models under one judge's name, or under other settings.

    None where one model judged, and those of each benchmark agree in all settings. Those of different benchmarks have
    to agree in how questions are asked.
    """
    if mixed := mixed_words(frozenset[str]().union(*(evaluation.raters for evaluation in evaluations))):
        return mixed
    together: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        together.setdefault(evaluation.benchmark, []).append(evaluation)
    said = [mixed_settings(e.settings for e in of_one) for of_one in together.values()]
    said.append(mixed_settings({key: e.settings.get(key) for key in ASKED} for e in evaluations))
    return next(filter(None, said), None)


def unlike_rows(
    paper: Paper, variants: Mapping[str, Sequence[Variant]], column: str, groups: Sequence[Group], k: int
) -> str | None:
    """What is said of rows whose figures under the k-th judge and benchmark are no more alike than `unlike` has it."""
    name = paper.suite_of(column)
    suite, known = paper.suites[name], variants[name]
    if k >= len(known):
        return None
    rows = [found_of(suite, name, known[k], column, group) for group in groups]
    valued = [[evaluation for _, evaluation in row] for row in rows if _values(suite, column, row)]
    return unlike([evaluation for row in valued if unlike(row) is None for evaluation in row])


def _values(suite: Suite, column: str, found: Sequence[tuple[str, Evaluation]]) -> dict[str, list[float]]:
    """A value a round of each run; the mean of a suite's columns where a round has all of them and none of its own."""
    by_round: dict[tuple[str, int], dict[str, float]] = {}
    for run, evaluation in found:
        by_round.setdefault((run, evaluation.round), {}).update(evaluation.scores)
    values: dict[str, list[float]] = {}
    for (run, _), scores in by_round.items():
        parts = [name for name in suite.columns if name != "mean"]
        if column in scores:
            values.setdefault(run, []).append(scores[column])
        elif column == "mean" and all(part in scores for part in parts):
            values.setdefault(run, []).append(sum(scores[part] for part in parts) / len(parts))
    return values


def figure_of_runs(rounds: Sequence[Sequence[float]], decimals: int) -> Cell:
    """The mean of runs, each of them the mean of its rounds, whose number is said as seeds x rounds.

    Rounds of a run are no independent runs: the standard deviation is over runs; over the rounds of one that is alone.

    Args:
        rounds: the values of each run.
        decimals: that are shown.
    """
    alone = rounds[0] if len(rounds) == 1 else None
    cell = figure(alone or [sum(values) / len(values) for values in rounds], decimals)
    fewest, most = min(map(len, rounds)), max(map(len, rounds))
    number = f"{len(rounds)} x {most if fewest == most else f'{fewest} to {most}'}"
    return replace(cell, text=f"{cell.text} ({number})")


def said_of(suite: Suite, variant: Variant, are_several: bool) -> str | None:
    """What a note says of a judge and benchmark that are not the paper's; None where there is nothing to say."""
    judge, benchmark = variant
    said = []
    if not suite.has_judge(judge):
        said.append(f"judge {judge or 'none'}, the paper's is {suite.judge or 'none'}")
    elif are_several and judge is not None:
        said.append(f"judge {judge}")
    if benchmark is not None:
        said.append(f"benchmark {benchmark}, the paper's is {', '.join(suite.benchmarks)}")
    return "; ".join(said) or None
