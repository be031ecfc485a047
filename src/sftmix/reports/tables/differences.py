"""Scores of some groups minus the scores of the groups they are compared with, paired by seed and question."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sftmix.analysis.verdict import holm, verdict_of
from sftmix.evaluation.results import Evaluation, read_evaluations
from sftmix.provenance.runs import read_held_out
from sftmix.reports.page import Block, Cell
from sftmix.reports.tables.columns import (
    HELD_OUT,
    Paired,
    difference_cell,
    disagreement,
    held_out_metrics,
    mean_by_question,
    pair_up,
)
from sftmix.reports.tables.groups import Group
from sftmix.reports.tables.paper import read_paper
from sftmix.reports.tables.scores import Variant, variant_note, variant_of

CORRECTED = (
    "a verdict is by its own interval; a note says which differences do not remain after Holm's correction over "
    "their block"
)
RunPairs = Sequence[tuple[Path, Path]]  # runs of ours and of the other recipe, one pair per seed


class _Compared(NamedTuple):
    """A difference of the block, before the number of differences is known."""

    paired: Paired
    decimals: int
    note: str | None
    lower_is_better: bool


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
    variants: Mapping[str, Sequence[Variant]],
) -> Block | None:
    """Return the differences of some columns with their intervals, or None if no pair of runs has both.

    Each cell has its verdict; a note says if the difference does not remain after Holm's correction over the block.

    Args:
        contrasts: Labels of each row, and the runs that are compared.
        columns: The held-out loss, and columns of suites.
        variants: Judges and benchmarks of each suite, a row for each.
    """
    rows: list[tuple[tuple[Cell, ...], list[Cell | _Compared]]] = []
    depth = max(map(len, variants.values()), default=0)
    for labels, pairs in contrasts:
        read = [(read_evaluations(ours), read_evaluations(theirs)) for ours, theirs in pairs]
        for k in range(max(1, depth)):
            found = [
                (_loss(pairs) if k == 0 else Cell()) if column == HELD_OUT else _score(variants, column, read, k)
                for column in columns
            ]
            if any(isinstance(one, _Compared) or one.text for one in found):
                rows.append((labels, found))
    compared = [one for _, found in rows for one in found if isinstance(one, _Compared)]
    p_values = [one.paired.difference.p for one in compared]
    number, adjusted = sum(not math.isnan(p) for p in p_values), iter(holm(p_values))
    block = Block(f"{title}, paired [95%] (examples, seeds)", ("", "row"), tuple(columns))
    for labels, found in rows:
        cells = [one if isinstance(one, Cell) else _cell(one, next(adjusted), number) for one in found]
        block.rows.append((*labels, *cells))
    return block if block.rows else None


def _cell(compared: _Compared, adjusted: float, number: int) -> Cell:
    """Return a difference with its verdict; the note names the judge and what limits the verdict."""
    found = compared.paired.difference
    verdict = verdict_of(found, lower_is_better=compared.lower_is_better, adjusted_p=adjusted, num_comparisons=number)
    cell = difference_cell(found, compared.decimals, show_n=True, verdict=verdict)
    return replace(cell, note="; ".join(filter(None, (compared.note, cell.note))) or None)


def _loss(pairs: RunPairs) -> Cell | _Compared:
    losses = [(read_held_out(ours), read_held_out(theirs)) for ours, theirs in pairs]
    same = [(ours, theirs) for ours, theirs in losses if ours.num_tokens == theirs.num_tokens]
    paired = pair_up([(held_out_metrics(ours), held_out_metrics(theirs)) for ours, theirs in same])
    return Cell() if paired is None else _Compared(paired, 4, None, lower_is_better=True)


def _score(
    variants: Mapping[str, Sequence[Variant]],
    column: str,
    read: Sequence[tuple[Sequence[Evaluation], Sequence[Evaluation]]],
    k: int,
) -> Cell | _Compared:
    """Return the difference of a column under the k-th judge and benchmark of its suite."""
    suite = read_paper().suite_of(column)
    known = variants[suite.name]
    if k >= len(known):
        return Cell()

    def chosen(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        same = [e for e in evaluations if e.suite == suite.name and variant_of(suite, e) == known[k]]
        return [evaluation for evaluation in same if column in evaluation.questions]

    both = [(chosen(ours), chosen(theirs)) for ours, theirs in read]
    pairs = [(mean_by_question(ours, column), mean_by_question(theirs, column)) for ours, theirs in both]
    pairs = [(ours, theirs) for ours, theirs in pairs if ours.values and theirs.values]
    if mixed := disagreement(pairs):
        return Cell("not compared", note=mixed)
    paired = pair_up(pairs)
    if paired is None:
        return Cell()
    note = variant_note(suite, known[k], len(known) > 1)
    return _Compared(paired, suite.decimals, note, lower_is_better=False)
