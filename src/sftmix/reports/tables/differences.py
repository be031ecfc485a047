"""Scores of some rows of a table minus those of the rows they are compared with, paired by seed and question."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sftmix.analysis.holm import holm
from sftmix.analysis.verdict import verdict_of
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.reports.held_out import read_held_out
from sftmix.reports.page import Block, Cell
from sftmix.reports.tables.columns import (
    HELD_OUT,
    Paired,
    difference_cell,
    disagreement,
    held_out_figures,
    mean_by_question,
    pair_up,
)
from sftmix.reports.tables.groups import Group
from sftmix.reports.tables.paper import Paper
from sftmix.reports.tables.scores import Variant, said_of, variant_of

CORRECTED = (
    "a verdict is by its own interval; a note says which differences do not remain after Holm's correction over "
    "their block"
)
Pairs = Sequence[tuple[Path, Path]]


class Contrast(NamedTuple):
    """A row and what it is compared with.

    Attributes:
        labels: its group and what it is called.
        pairs: runs of ours and of the other, a pair a seed.
    """

    labels: tuple[Cell, ...]
    pairs: Pairs


class _Compared(NamedTuple):
    """A difference of the block, before it is known how many there are.

    Attributes:
        paired: runs of both.
        decimals: that are shown.
        said: of its judge and benchmark.
        lower_is_better: Direction of the metric.
    """

    paired: Paired
    decimals: int
    said: str | None
    lower_is_better: bool


def minus_ntp(group: Group) -> Pairs:
    """Each complete run of a group with the NTP run at its settings; none of NTP itself."""
    return [] if group.is_ntp else [(row.target, row.baseline) for row in group.done if row.has_baseline]


def minus_group(group: Group, control: Group) -> Pairs:
    """Each complete run of a group with the run of another under the same seed."""
    theirs = {row.seed: row.target for row in control.done}
    return [(row.target, theirs[row.seed]) for row in group.done if row.seed in theirs]


def differences(
    title: str,
    contrasts: Iterable[Contrast],
    paper: Paper,
    columns: Sequence[str],
    variants: Mapping[str, Sequence[Variant]],
) -> Block | None:
    """The differences of some columns with their intervals; None where no pair of runs has both.

    Each cell has its verdict; a note says so if the difference does not remain after Holm's correction over the block.

    Args:
        title: of the table.
        contrasts: its rows.
        paper: says which suite has a column.
        columns: the held-out loss, and columns of suites.
        variants: judges and benchmarks of each suite, a line for each.
    """
    rows: list[tuple[tuple[Cell, ...], list[Cell | _Compared]]] = []
    depth = max(map(len, variants.values()), default=0)
    for contrast in contrasts:
        read = [(read_evaluations(ours), read_evaluations(theirs)) for ours, theirs in contrast.pairs]
        for k in range(max(1, depth)):
            found = [
                (_loss(contrast.pairs) if k == 0 else Cell())
                if column == HELD_OUT
                else _score(paper, variants, column, read, k)
                for column in columns
            ]
            if any(isinstance(one, _Compared) or one.text for one in found):
                rows.append((contrast.labels, found))
    compared = [one for _, found in rows for one in found if isinstance(one, _Compared)]
    p_values = [one.paired.difference.p for one in compared]
    number, adjusted = sum(not math.isnan(p) for p in p_values), iter(holm(p_values))
    block = Block(f"{title}, paired [95%] (examples, seeds)", ("", "row"), tuple(columns))
    for labels, found in rows:
        cells = [one if isinstance(one, Cell) else _cell(one, next(adjusted), number) for one in found]
        block.rows.append((*labels, *cells))
    return block if block.rows else None


def _cell(compared: _Compared, adjusted: float, number: int) -> Cell:
    """Return a difference with its verdict; the note has the judge and what limits the verdict."""
    found = compared.paired.difference
    verdict = verdict_of(found, lower_is_better=compared.lower_is_better, adjusted_p=adjusted, num_comparisons=number)
    cell = difference_cell(compared.paired, compared.decimals, show_n=True)
    said = "; ".join(filter(None, (compared.said, verdict.reason)))
    return replace(cell, text=f"{cell.text}: {verdict.words}", note=said or None)


def _loss(pairs: Pairs) -> Cell | _Compared:
    losses = [(read_held_out(ours), read_held_out(theirs)) for ours, theirs in pairs]
    same = [(ours, theirs) for ours, theirs in losses if ours.num_tokens == theirs.num_tokens]
    paired = pair_up([(held_out_figures(a, list(a.nll)), held_out_figures(b, list(b.nll))) for a, b in same])
    return Cell() if paired is None else _Compared(paired, 4, None, lower_is_better=True)


def _score(
    paper: Paper,
    variants: Mapping[str, Sequence[Variant]],
    column: str,
    read: Sequence[tuple[Sequence[Evaluation], Sequence[Evaluation]]],
    k: int,
) -> Cell | _Compared:
    """The difference of a column under the k-th judge and benchmark of its suite."""
    name = paper.suite_of(column)
    suite = paper.suites[name]
    if k >= len(variants[name]):
        return Cell()
    variant = variants[name][k]

    def chosen(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        return [e for e in evaluations if e.suite == name and variant_of(suite, e) == variant and column in e.questions]

    both = [(chosen(ours), chosen(theirs)) for ours, theirs in read]
    pairs = [(mean_by_question(ours, column), mean_by_question(theirs, column)) for ours, theirs in both]
    pairs = [(ours, theirs) for ours, theirs in pairs if ours.values and theirs.values]
    if mixed := disagreement(pairs):
        return Cell("not compared", note=mixed)
    paired = pair_up(pairs)
    if paired is None:
        return Cell()
    said = said_of(suite, variant, len(variants[name]) > 1)
    return _Compared(paired, suite.decimals, said, lower_is_better=False)
