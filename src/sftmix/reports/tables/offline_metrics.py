"""What `suite=offline` found of the rows of a table: figures that no judge gives."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sftmix.evaluation.results import Evaluation
from sftmix.reports.page import Block, Cell
from sftmix.reports.tables.groups import Group, figure

SUITE, BENCHMARK = "offline", "held-out"
COLUMNS = ("accuracy", "ECE", "Brier", "entropy", "gap", "linearity gap")  # accuracy first: the next two are read by it
SET_BY = {"ECE": "num_bins", "linearity gap": "lams"}  # other values of it make another figure


def without_judge(rows: Iterable[tuple[tuple[Cell, ...], Group]]) -> Block | None:
    """Means over seeds, a line for each part of the held-out examples; None where no run was evaluated so.

    Args:
        rows: labels of two columns, and the runs they are of.
    """
    block = Block("Without a judge, over held-out examples: entropy and gaps in nats (seeds)", ("", "row"), COLUMNS)
    for labels, group in rows:
        found = [evaluation for _, evaluation in group.evaluations if evaluation.suite == SUITE]
        for benchmark in sorted({evaluation.benchmark for evaluation in found}):
            same = [evaluation for evaluation in found if evaluation.benchmark == benchmark]
            note = None if benchmark == BENCHMARK else f"over {benchmark}"
            block.rows.append((*labels[:-1], replace(labels[-1], note=note), *(_cell(same, c) for c in COLUMNS)))
    return block if block.rows else None


def _cell(found: Sequence[Evaluation], column: str) -> Cell:
    having = [evaluation for evaluation in found if column in evaluation.scores]
    if not having:
        return Cell()
    key = SET_BY.get(column)
    values = {str(evaluation.settings.get(key)) for evaluation in having} if key else set()
    if len(values) > 1:
        return Cell("no mean", note=f"suite.{key} was {' and '.join(sorted(values))}")
    cell = figure([evaluation.scores[column] for evaluation in having], 4, show_n=True)
    halves = {str(half) for evaluation in having if (half := evaluation.record.get("trained_half")) is not None}
    return replace(cell, note=f"over the {' and '.join(sorted(halves))} half") if column == "gap" and halves else cell
