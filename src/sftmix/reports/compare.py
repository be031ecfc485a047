"""Two recipes beside each other: every figure that both have by example, with what may be said of the difference."""

import math
from collections.abc import Sequence
from pathlib import Path

from sftmix.analysis.holm import holm
from sftmix.analysis.paired import LEVEL
from sftmix.analysis.permutation import floor_of, pairs_needed, sign_flip_p
from sftmix.analysis.verdict import verdict_of
from sftmix.errors import InputError
from sftmix.evaluation.terciles import LOSS, loss_of
from sftmix.reports.columns import (
    Column,
    Paired,
    difference_cell,
    disagreement,
    held_out_figures,
    pair_up,
    read_columns,
)
from sftmix.reports.groups import ALL, INTERVAL, PARTS, figure, read_record
from sftmix.reports.held_out import read_halves, read_held_out
from sftmix.reports.page import Block, Cell, Page, write_pages
from sftmix.reports.pairs import pair_sides, side_of
from sftmix.reports.paper import read_paper
from sftmix.terminal import counted

HELD_OUT, OFFLINE = "held-out loss", "offline"
COLUMNS = ("a", "b", "a minus b [95%]", "p", "Holm p", "p examples", "p seeds", "examples", "seeds", "verdict")
Pairs = Sequence[tuple[Path, Path]]
Rows = dict[Column, Paired]


def compare(one: Path, other: Path, form: str = "text", *, styled: bool = False) -> str:
    """Whether two recipes differ, for each figure that both have of the same examples.

    Each run stands for its recipe: the runs that differ from it in the seed alone join it.

    Args:
        one: folder of a run, a.
        other: folder of another, b.
        form: text, markdown, latex or csv.
        styled: bold by the terminal's own means.

    Raises:
        ConfigError: there is no such form.
        InputError: they are no two runs, nothing can be compared, or scipy is not installed.
    """
    sides = side_of(one), side_of(other)
    pairing = pair_sides(*sides)
    notes: list[str] = []
    losses = _held_out(pairing.pairs, notes)
    rows = {**losses, **_scores(pairing.pairs, _copies(losses), notes)}
    if not rows:
        raise InputError(f"compare=[{one.name},{other.name}]: {'; '.join(notes) or 'nothing that both have'}")
    block = Block("a minus b, paired by seed and example", ("of", "column"), COLUMNS)
    adjusted = holm([paired.difference.p for paired in rows.values()])
    for (column, paired), p in zip(rows.items(), adjusted, strict=True):
        block.rows.append(_row(column, paired, p, is_one_recipe=pairing.is_one_recipe))
    head = [f"{one.name} against {other.name}", f"a  {sides[0].in_words}", f"b  {sides[1].in_words}", *pairing.said]
    notes += [
        INTERVAL,
        f"p is of the interval, Holm p is corrected for {counted(len(rows), 'row')}, and the verdict goes by it; p "
        f"examples and p seeds are sign-flip tests",
    ]
    return write_pages([Page(head[0], head, [block], notes)], form, styled=styled)


def _held_out(pairs: Pairs, notes: list[str]) -> Rows:
    """The held-out loss overall and by half, in nats per response token."""
    losses = [(read_held_out(a), read_held_out(b)) for a, b in pairs if _holds_out(a) and _holds_out(b)]
    losses = [(a, b) for a, b in losses if a.nll and b.nll]
    if not losses:
        return {}
    ids = sorted(losses[0][0].nll)
    if any(loss.num_tokens != losses[0][0].num_tokens for pair in losses for loss in pair):
        notes.append("the runs hold out other examples, or other tokens of them: their losses are not compared")
        return {}
    halves = _halves(pairs, notes)
    rows: Rows = {}
    for part in PARTS:
        of_part = [i for i in ids if part == ALL or halves.get(i) == part]
        paired = pair_up([(held_out_figures(a, of_part), held_out_figures(b, of_part)) for a, b in losses])
        if paired is not None:
            name = "all" if part == ALL else f"{part} half"
            rows[Column(HELD_OUT, None, "nats per token", name)] = paired
    return rows


def _holds_out(run: Path) -> bool:
    return (run / "val.parquet").is_file()


def _halves(pairs: Pairs, notes: list[str]) -> dict[str, str]:
    """The half of each held-out example, where the runs that have a split by confidence agree."""
    found = [halves for pair in pairs for run in pair if (halves := _confident_halves(run))]
    if any(halves != found[0] for halves in found):
        notes.append("the runs have other halves: losses by half are not compared")
        return {}
    return found[0] if found else {}


def _confident_halves(run: Path) -> dict[str, str]:
    config = read_record(run / "run.json").get("config") or {}
    by = (config.get("split") or {}).get("by", "confidence")
    return read_halves(run) if by == "confidence" else {}


def _copies(losses: Rows) -> set[str]:
    """What suite=offline calls the losses that are compared already, as the runs themselves measured them."""
    parts = {column.name.removesuffix(" half") for column in losses}
    return {LOSS if part == ALL else loss_of(part) for part in parts}


def _scores(pairs: Pairs, copies: set[str], notes: list[str]) -> Rows:
    """What suites found by question of both runs of a seed, each judge and benchmark apart; no copies of losses."""
    read = [(read_columns(a), read_columns(b)) for a, b in pairs]
    rows: Rows = {}
    alone: list[str] = []
    for column in dict.fromkeys(c for pair in read for columns in pair for c in columns):
        if column.suite == OFFLINE and column.name in copies:
            continue
        both = [(a[column], b[column]) for a, b in read if column in a and column in b]
        if mixed := disagreement(both):
            notes.append(f"{' '.join(_labels(column))}: not compared, {mixed}")
            continue
        paired = pair_up(both)
        if paired is None:
            alone.append(" ".join(_labels(column)))
            continue
        rows[column] = paired
        if paired.num_left_out:
            left_out = counted(paired.num_left_out, "question")
            notes.append(f"{' '.join(_labels(column))}: {left_out} that not all runs have alike are left out")
    if alone:
        notes.append(f"no pair of runs has both of the same examples: {'; '.join(alone)}")
    return rows


def _labels(column: Column) -> tuple[str, str]:
    suite = read_paper().suites.get(column.suite)
    title = suite.title if suite is not None and suite.judge is not None else column.suite
    is_told = column.benchmark in (title, column.name)
    parts = [title, *([] if is_told else [column.benchmark]), *([f"by {column.judge}"] if column.judge else [])]
    return ", ".join(parts), column.name


def _row(column: Column, paired: Paired, adjusted: float, *, is_one_recipe: bool) -> tuple[Cell, ...]:
    found = paired.difference
    suite = read_paper().suites.get(column.suite)
    decimals = 4 if suite is None else suite.decimals
    seeds = len(found.of_seeds)
    return (
        *map(Cell, _labels(column)),
        figure(paired.ours, decimals),
        figure(paired.theirs, decimals),
        difference_cell(paired, decimals),
        _p_cell(found.p),
        _p_cell(adjusted),
        _p_cell(sign_flip_p(paired.of_examples)),
        _p_of_seeds(found.of_seeds),
        Cell(f"{found.num_examples:,}", value=found.num_examples),
        Cell(str(seeds), value=seeds),
        _verdict(paired, adjusted, is_one_recipe=is_one_recipe),
    )


def _p_cell(p: float) -> Cell:
    return Cell() if math.isnan(p) else Cell(f"{p:.4f}", value=p)


def _p_of_seeds(of_seeds: Sequence[float]) -> Cell:
    """The sign-flip test over seeds, with what so few of them can give at the least."""
    if len(of_seeds) < 2:
        return Cell()
    p, needed = sign_flip_p(of_seeds), pairs_needed(1 - LEVEL)
    few = f"{len(of_seeds)} seeds give at least {floor_of(len(of_seeds))}, {needed} are needed for {1 - LEVEL:.2f}"
    return Cell(f"{p:.4f}", value=p, note=few if len(of_seeds) < needed else None)


def _verdict(paired: Paired, adjusted: float, *, is_one_recipe: bool) -> Cell:
    if is_one_recipe:
        return Cell("not different", note="two seeds of one recipe")
    verdict = verdict_of(paired.difference, adjusted)
    return Cell(verdict.words, note=verdict.reason)
