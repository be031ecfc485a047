"""Scores of some rows of a table minus those of the rows they are compared with, paired by seed and question."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.reports.columns import difference_cell, disagreement, held_out_figures, mean_by_question, pair_up
from sftmix.reports.groups import Group
from sftmix.reports.held_out import read_held_out
from sftmix.reports.page import Block, Cell
from sftmix.reports.paper import Paper
from sftmix.reports.scores import Variant, said_of, variant_of
from sftmix.reports.sweeps import is_complete

HELD_OUT = "held-out loss"
Pairs = Sequence[tuple[Path, Path]]


class Contrast(NamedTuple):
    """A row and what it is compared with.

    Attributes:
        labels: its group and what it is called.
        pairs: runs of ours and of the other, a pair a seed.
    """

    labels: tuple[Cell, ...]
    pairs: Pairs


def minus_ntp(group: Group) -> Pairs:
    """Each complete run of a group with the NTP run at its settings; none of NTP itself."""
    rows = [] if group.is_ntp else [row for row in group.done if row.baseline != row.target]
    return [(row.target, row.baseline) for row in rows if is_complete(row.baseline)]


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

    Args:
        title: of the table.
        contrasts: its rows.
        paper: says which suite has a column.
        columns: the held-out loss, and columns of suites.
        variants: judges and benchmarks of each suite, a line for each.
    """
    block = Block(f"{title}, paired [95%] (examples, seeds)", ("", "row"), tuple(columns))
    depth = max(map(len, variants.values()), default=0)
    for contrast in contrasts:
        read = [(read_evaluations(ours), read_evaluations(theirs)) for ours, theirs in contrast.pairs]
        for k in range(max(1, depth)):
            cells = [
                (_loss_cell(contrast.pairs) if k == 0 else Cell())
                if column == HELD_OUT
                else _score_cell(paper, variants, column, read, k)
                for column in columns
            ]
            if any(cell.text for cell in cells):
                block.rows.append((*contrast.labels, *cells))
    return block if block.rows else None


def _loss_cell(pairs: Pairs) -> Cell:
    losses = [(read_held_out(ours), read_held_out(theirs)) for ours, theirs in pairs]
    same = [(ours, theirs) for ours, theirs in losses if ours.num_tokens == theirs.num_tokens]
    paired = pair_up([(held_out_figures(a, list(a.nll)), held_out_figures(b, list(b.nll))) for a, b in same])
    return Cell() if paired is None else difference_cell(paired, 4, show_n=True)


def _score_cell(
    paper: Paper,
    variants: Mapping[str, Sequence[Variant]],
    column: str,
    read: Sequence[tuple[Sequence[Evaluation], Sequence[Evaluation]]],
    k: int,
) -> Cell:
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
    cell = difference_cell(paired, suite.decimals, show_n=True)
    return replace(cell, note=said_of(suite, variant, len(variants[name]) > 1))
