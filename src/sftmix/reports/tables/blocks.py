"""The blocks of a table's page: scores, held-out loss, metrics without a judge, and differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest

from sftmix.reports.page import Block, Cell
from sftmix.reports.tables.differences import HELD_OUT, differences, minus_group, minus_ntp
from sftmix.reports.tables.groups import ALL, SUBSETS, Group, subsets_for, verdicts_to_ntp
from sftmix.reports.tables.paper import PaperRow, PaperTable, read_paper
from sftmix.reports.tables.scores import VariantRow, offline_block, score_cell, unlike_groups, variants_of

UNKNOWN = Cell("?", note="unknown in our copy of the table")


@dataclass(frozen=True)
class Line:
    """A row of the paper with our group of the same settings; either of them may be None."""

    group: str  # Lines of the same group are compared with each other
    label: str
    paper: PaperRow | None
    ours: Group | None
    command: str | None = None  # The command that makes our runs

    @property
    def labels(self) -> tuple[Cell, Cell]:
        return Cell(self.group), Cell(self.label)


def blocks_of(
    published: PaperTable | None, groups: Sequence[Group], lines: Sequence[Line], notes: list[str]
) -> tuple[list[Block], bool]:
    """Return the blocks of a page and whether any of them shows differences. Notes are appended to `notes`."""
    suites = read_paper().suites
    evaluated = {evaluation.suite for group in groups for _, evaluation in group.evaluations}
    ours = [column for name, suite in suites.items() if name in evaluated for column in suite.columns]
    columns = published.columns if published is not None else ours
    known = zip_longest(*(variants_of(read_paper().suite_of(column), groups) for column in columns))
    variants = [dict(zip(columns, row, strict=True)) for row in known] or [dict.fromkeys(columns)]
    blocks = [_scores(columns, variants, lines, notes)] if columns else []
    blocks += _held_out(lines, notes)
    offline = offline_block((line.labels, line.ours) for line in lines if line.ours is not None)
    compared = _differences(published, columns, variants, lines)
    blocks += [*([] if offline is None else [offline]), *compared]
    for k, block in enumerate(blocks):
        if not any(row[0].text for row in block.rows):
            blocks[k] = replace(block, labels=block.labels[1:], rows=[row[1:] for row in block.rows])
    return blocks, bool(compared)


def _scores(columns: Sequence[str], variants: Sequence[VariantRow], lines: Sequence[Line], notes: list[str]) -> Block:
    """Return the paper's columns: the published values, and our scores, a row for each judge and benchmark."""
    block = Block("Scores, mean ± sd (seeds x rounds)", ("", "row", "whose"), tuple(columns))
    owners: list[tuple[str, int] | None] = []  # group and variant of each row; None for a row of the paper
    for line in lines:
        if line.paper is not None:
            owners.append(None)
            decimals = [read_paper().suite_of(column).decimals for column in columns]
            values = zip(line.paper.values, decimals, strict=True)
            cells = [UNKNOWN if v is None else Cell(f"{v:.{places}f}", value=v) for v, places in values]
            block.rows.append((*line.labels, Cell("paper"), *cells))
        if line.ours is None and line.command is None:
            continue
        whose = Cell("ours", note=line.ours.missing() if line.ours is not None else None)
        for k, row in enumerate(variants):
            cells = [score_cell(row[column], column, line.ours, line.command, first=k == 0) for column in columns]
            block.rows.append((*line.labels, whose, *cells))
            owners.append((line.group, k))
    comparable = dict.fromkeys(columns, [True] * len(owners))
    unlike: dict[tuple[str, str], list[str]] = {}
    for column, owner in product(columns, dict.fromkeys(filter(None, owners))):
        groups = [line.ours for line in lines if line.ours is not None and line.group == owner[0]]
        variant = variants[owner[1]][column]
        if variant is not None and (why := unlike_groups(variant, column, groups)):
            comparable[column] = [is_so and owner != o for is_so, o in zip(comparable[column], owners, strict=True)]
            unlike.setdefault((owner[0], why), []).append(column)
    notes += [
        f"{', '.join([*filter(None, [group]), *names])}: no best, {why}" for (group, why), names in unlike.items()
    ]
    return _with_best(block, comparable, highest=True)


def _differences(
    published: PaperTable | None,
    columns: Sequence[str],
    variants: Sequence[VariantRow],
    lines: Sequence[Line],
) -> list[Block]:
    """Return the scores minus NTP, and all columns minus the row that the paper compares a row with."""
    ours = [(line, line.ours) for line in lines if line.ours is not None]
    contrasts = [(line.labels, minus_ntp(group)) for line, group in ours]
    found = [differences("Scores minus NTP", contrasts, columns, variants)]
    if published is not None and published.control is not None:
        controls = {line.group: group for line, group in ours if line.label == published.control}
        contrasts = [
            (line.labels, minus_group(group, controls[line.group]))
            for line, group in ours
            if line.group in controls and line.label != published.control
        ]
        title = f"Minus {published.control} on the same examples"
        found.append(differences(title, contrasts, (HELD_OUT, *columns), variants))
    return [block for block in found if block is not None]


def _held_out(lines: Sequence[Line], notes: list[str]) -> list[Block]:
    """Return held-out loss with the difference to NTP, and perplexity: overall and for each subset."""
    ours = [line for line in lines if line.ours is not None or line.command is not None]
    groups = [line.ours for line in ours if line.ours is not None]
    if not any(group.done for group in groups):
        return []
    subsets = subsets_for(groups)
    labels = ("", "row")
    columns = (ALL, *(f"{subset} subset" for subset in SUBSETS[1:]))
    verdicts = verdicts_to_ntp(groups)
    loss = Block("Held-out loss, nats per response token", labels, (*columns, "minus NTP [95%]", "examples", "seeds"))
    perplexity = Block("Held-out perplexity", labels, columns)
    for line in ours:
        if line.ours is None:
            missing = Cell("not run", note=f"not run: {line.command}")
            for block in (loss, perplexity):
                block.rows.append((*line.labels, missing, *(Cell() for _ in block.columns[1:])))
            continue
        group = line.ours
        members, owner = subsets[group]
        if owner is not None:
            notes.append(f"the subsets of {group.label} are by the split of {owner.label}")
        count = Cell(str(len(group.val_ids)), value=len(group.val_ids)) if group.losses else Cell()
        seeds = Cell(str(len(group.done)), value=len(group.done))
        losses = [group.loss_cell(members[subset]) for subset in SUBSETS]
        perplexities = [group.loss_cell(members[subset], math.exp) for subset in SUBSETS]
        if not group.done:
            losses[1:] = perplexities[1:] = [Cell(), Cell()]
        label = replace(Cell(line.label), note=group.missing())
        difference = group.difference_cell(verdicts.get(group))
        loss.rows.append((Cell(line.group), label, *losses, difference, count, seeds))
        perplexity.rows.append((*line.labels, *perplexities))
    comparable = {c: _comparable(ours, subsets, subset) for c, subset in zip(columns, SUBSETS, strict=True)}
    if not all(all(flags) for flags in comparable.values()):
        notes.append("values over other examples than the rest of their group have no best")
    return [_with_best(block, comparable, highest=False) for block in (loss, perplexity)]


def _comparable(
    lines: Sequence[Line], subsets: Mapping[Group, tuple[Mapping[str, Sequence[str]], Group | None]], subset: str
) -> list[bool]:
    """Return for each line whether all lines of its group have the same held-out examples in a subset."""
    by_group: dict[str, set[tuple[str, ...]]] = {}
    for line in lines:
        if line.ours is not None and (ids := subsets[line.ours][0][subset]):
            by_group.setdefault(line.group, set()).add(tuple(ids))
    return [len(by_group.get(line.group, ())) < 2 for line in lines]


def _with_best(block: Block, comparable: Mapping[str, Sequence[bool]], *, highest: bool) -> Block:
    """Mark the best cell of each column, among comparable rows of one group and one author."""
    first = len(block.labels)
    rows = [list(row) for row in block.rows]
    for column, flags in comparable.items():
        k = first + block.columns.index(column)
        together: dict[tuple[str, ...], list[int]] = {}
        for number, row in enumerate(rows):
            if row[k].value is not None and (not flags or flags[number]):
                key = (row[0].text, *(cell.text for cell in row[2:first]), row[k].note or "")
                together.setdefault(key, []).append(number)
        for numbers in together.values():
            values = [rows[number][k].value or 0.0 for number in numbers]
            best = max(values) if highest else min(values)
            for number, value in zip(numbers, values, strict=True):
                if len(numbers) > 1 and value == best:
                    rows[number][k] = replace(rows[number][k], is_best=True)
    return replace(block, rows=[tuple(row) for row in rows])
