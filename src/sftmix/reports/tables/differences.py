"""Scores of some groups minus the scores of the groups they are compared with, paired by seed and question."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sftmix.analysis.paired import Difference
from sftmix.analysis.verdict import ComparisonVerdict, corrected_verdicts
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.provenance.runs import read_held_out
from sftmix.reports.page import Block, Cell
from sftmix.reports.tables.columns import (
    HELD_OUT,
    ExampleMetrics,
    difference_cell,
    difference_of_losses,
    disagreement,
    mean_by_question,
    pair_up,
)
from sftmix.reports.tables.groups import Group
from sftmix.reports.tables.scores import Variant, VariantRow

CORRECTED = (
    "a verdict is by its own interval; a note says which differences do not remain after Holm's correction over "
    "their block"
)
RunPairs = Sequence[tuple[Path, Path]]  # Runs of ours and of the other recipe, one pair per seed


class _Compared(NamedTuple):
    """A difference of a block, before the number of differences of the block is known."""

    difference: Difference
    decimals: int
    note: str | None  # Names the judge and the benchmark
    lower_is_better: bool

    def cell(self, verdict: ComparisonVerdict) -> Cell:
        cell = difference_cell(self.difference, self.decimals, show_n=True, verdict=verdict)
        return replace(cell, note="; ".join(filter(None, (self.note, cell.note))) or None)


def minus_ntp(group: Group) -> RunPairs:
    """Return each complete run of a group with the NTP run at its settings; none if the group is NTP itself."""
    return [] if group.is_ntp else [(run.target, run.baseline) for run in group.done if run.has_baseline]


def minus_group(group: Group, control: Group) -> RunPairs:
    """Return each complete run of a group with the run of another group under the same seed."""
    theirs = {run.seed: run.target for run in control.done}
    return [(run.target, theirs[run.seed]) for run in group.done if run.seed in theirs]


def differences(
    title: str,
    contrasts: Iterable[tuple[tuple[Cell, ...], RunPairs]],
    columns: Sequence[str],
    variants: Sequence[VariantRow],
) -> Block | None:
    """Return the differences of some columns with their intervals, or None if no pair of runs has both.

    Each cell has its verdict. A note says if the difference does not remain after Holm's correction over the block.

    Args:
        contrasts: Labels of each row, and the runs that are compared.
        variants: Judges and benchmarks of each column, in rows.
    """
    rows: list[tuple[tuple[Cell, ...], list[Cell | _Compared]]] = []
    for labels, pairs in contrasts:
        read = [(read_evaluations(ours), read_evaluations(theirs)) for ours, theirs in pairs]
        for k, row in enumerate(variants):
            found = [
                (_loss(pairs) if k == 0 else Cell()) if column == HELD_OUT else _score(row[column], column, read)
                for column in columns
            ]
            if any(isinstance(one, _Compared) or one.text for one in found):
                rows.append((labels, found))
    compared = [one for _, found in rows for one in found if isinstance(one, _Compared)]
    verdicts = iter(corrected_verdicts([(one.difference, one.lower_is_better) for one in compared]))
    block = Block(f"{title}, paired [95%] (examples, seeds)", ("", "row"), tuple(columns))
    for labels, found in rows:
        block.rows.append((*labels, *(one if isinstance(one, Cell) else one.cell(next(verdicts)) for one in found)))
    return block if block.rows else None


def _loss(pairs: RunPairs) -> Cell | _Compared:
    losses = [(read_held_out(ours), read_held_out(theirs)) for ours, theirs in pairs]
    found = difference_of_losses([(a, b) for a, b in losses if a.num_tokens == b.num_tokens])
    return Cell() if found is None else _Compared(found, 4, None, lower_is_better=True)


def _score(
    variant: Variant | None, column: str, read: Sequence[tuple[Sequence[Evaluation], Sequence[Evaluation]]]
) -> Cell | _Compared:
    """Return the difference of a column under a judge and benchmark."""
    if variant is None:
        return Cell()

    def metrics(evaluations: Sequence[Evaluation]) -> ExampleMetrics:
        return mean_by_question([e for e in evaluations if variant.has(e) and column in e.questions], column)

    pairs = [(metrics(ours), metrics(theirs)) for ours, theirs in read]
    pairs = [(ours, theirs) for ours, theirs in pairs if ours.values and theirs.values]
    if mixed := disagreement(pairs):
        return Cell("not compared", note=mixed)
    paired = pair_up(pairs)
    if paired is None:
        return Cell()
    return _Compared(paired.difference, variant.suite.decimals, variant.note, lower_is_better=False)
