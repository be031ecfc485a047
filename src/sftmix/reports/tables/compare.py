"""Two recipes beside each other: every figure that both have by example, with what may be said of the difference."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.analysis.holm import holm
from sftmix.analysis.paired import ALPHA, Difference
from sftmix.analysis.permutation import floor_of, pairs_needed, sign_flip_p
from sftmix.analysis.verdict import Verdict, verdict_of
from sftmix.errors import InputError
from sftmix.evaluation.quantile_bins import LOSS, loss_of
from sftmix.reports.held_out import read_halves, read_held_out
from sftmix.reports.page import Block, Cell, Page, write_pages
from sftmix.reports.runs import read_record
from sftmix.reports.tables.columns import (
    HELD_OUT,
    Column,
    Paired,
    difference_cell,
    disagreement,
    held_out_figures,
    pair_up,
    read_columns,
)
from sftmix.reports.tables.groups import ALL, INTERVAL, PARTS, figure
from sftmix.reports.tables.pairs import Pairing, pair_sides, side_of
from sftmix.reports.tables.paper import read_paper
from sftmix.terminal import counted

OFFLINE = "offline"
COLUMNS = ("a", "b", "a minus b [95%]", "p", "Holm p", "p examples", "p seeds", "examples", "seeds", "verdict")
OF_SEEDS = (
    "intervals are over pairs of seeds, by the scatter of the recipe's other runs; without two other runs they are "
    "over examples only"
)
Pairs = Sequence[tuple[Path, Path]]
Rows = dict[Column, Paired]


def compare(one: Path, other: Path, form: str = "text", *, styled: bool = False) -> str:
    """Whether two recipes differ, for each figure that both have of the same examples.

    Each run stands for its recipe: the runs that differ from it in the seed alone join it. Two runs of one recipe stand
    for themselves, and its others say how far seeds scatter.

    Args:
        one: folder of a run, a.
        other: folder of another, b.
        form: text, markdown, latex or csv.
        styled: bold by the terminal's own means.

    Raises:
        ConfigError: there is no such form.
        InputError: If they are not two runs, or nothing can be compared.
    """
    sides = side_of(one), side_of(other)
    pairing = pair_sides(*sides)
    notes: list[str] = []
    losses = _held_out(pairing, notes)
    rows = {**losses, **_scores(pairing, _copies(losses), notes)}
    if not rows:
        raise InputError(f"compare=[{one.name},{other.name}]: {'; '.join(notes) or 'nothing that both have'}")
    block = Block("a minus b, paired by seed and example", ("of", "column"), COLUMNS)
    # where no example differs there is nothing to test, and nothing that others have to be corrected for
    p_values = [paired.difference.p if any(paired.of_examples) else math.nan for paired in rows.values()]
    number = sum(not math.isnan(p) for p in p_values)
    adjusted = [
        paired.difference.p if math.isnan(p) else p for p, paired in zip(holm(p_values), rows.values(), strict=True)
    ]
    for (column, paired), p in zip(rows.items(), adjusted, strict=True):
        verdict = _verdict(column, paired, pairing, adjusted_p=p, num_comparisons=number)
        block.rows.append(_row(column, paired, p, verdict))
    head = [f"{one.name} against {other.name}", *pairing.said]
    notes += [
        OF_SEEDS if pairing.is_one_recipe else INTERVAL,
        f"verdict of a against b: by the interval over at least 2 seeds, whose p-value is p; Holm p is corrected for "
        f"{counted(number, 'row')}; p examples is over examples only, p seeds is a sign-flip test over seeds",
    ]
    return write_pages([Page(head[0], head, [block], notes)], form, styled=styled)


def _held_out(pairing: Pairing, notes: list[str], parts: Sequence[str] = PARTS) -> Rows:
    """The held-out loss overall and by half, in nats per response token."""
    pairs = pairing.pairs
    losses = [(read_held_out(a), read_held_out(b)) for a, b in pairs if _holds_out(a) and _holds_out(b)]
    losses = [(a, b) for a, b in losses if a.nll and b.nll]
    if not losses:
        return {}
    ids = sorted(losses[0][0].nll)
    if any(loss.num_tokens != losses[0][0].num_tokens for pair in losses for loss in pair):
        notes.append("the runs hold out other examples, or other tokens of them: their losses are not compared")
        return {}
    others = [read_held_out(run) for run in pairing.others if _holds_out(run)]
    others = [loss for loss in others if loss.num_tokens == losses[0][0].num_tokens]
    halves = _halves(pairs, notes) if len(parts) > 1 else {}
    rows: Rows = {}
    for part in parts:
        of_part = [i for i in ids if part == ALL or halves.get(i) == part]
        both = [(held_out_figures(a, of_part), held_out_figures(b, of_part)) for a, b in losses]
        paired = pair_up(both, [held_out_figures(loss, of_part) for loss in others])
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


def _scores(pairing: Pairing, copies: set[str], notes: list[str]) -> Rows:
    """What suites found by question of both runs of a seed, each judge and benchmark apart; no copies of losses."""
    read = [(read_columns(a), read_columns(b)) for a, b in pairing.pairs]
    beside = [read_columns(run) for run in pairing.others]
    rows: Rows = {}
    alone: dict[str, list[str]] = {}
    for column in dict.fromkeys(c for pair in read for columns in pair for c in columns):
        if column.suite == OFFLINE and column.name in copies:
            continue
        both = [(a[column], b[column]) for a, b in read if column in a and column in b]
        if mixed := disagreement(both):
            notes.append(f"{' '.join(_labels(column))}: not compared, {mixed}")
            continue
        raters = frozenset[str]().union(*(figures.raters for pair in both for figures in pair))
        others = [found[column] for found in beside if column in found and found[column].raters <= raters]
        paired = pair_up(both, [o for o in others if disagreement([*both, (o, o)]) is None])
        if paired is None:
            of, name = _labels(column)
            alone.setdefault(of, []).append(name)
            continue
        rows[column] = paired
        if paired.num_left_out:
            left_out = counted(paired.num_left_out, "question")
            notes.append(f"{' '.join(_labels(column))}: {left_out} that not all runs have alike are left out")
    for of, names in alone.items():
        notes.append(f"{of}, {', '.join(names)}: no pair of runs has both of the same examples")
    return rows


def _labels(column: Column) -> tuple[str, str]:
    suite = read_paper().suites.get(column.suite)
    title = suite.title if suite is not None and suite.judge is not None else column.suite
    is_told = column.benchmark in (title, column.name)
    parts = [title, *([] if is_told else [column.benchmark]), *([f"by {column.judge}"] if column.judge else [])]
    return ", ".join(parts), column.name


class HeldOutComparison(NamedTuple):
    """The held-out losses of two recipes over all seeds that both have, as `compare=` shows them.

    Attributes:
        difference: The first recipe minus the second, in nats per response token.
        verdict: The verdict on the first recipe.
    """

    difference: Difference
    verdict: Verdict


def compare_held_out(one: Path, other: Path) -> HeldOutComparison | None:
    """Return the comparison of the held-out losses of two runs, each joined by the other seeds of its recipe.

    This is the row "held-out loss, all" of `compare`, without a correction for the other rows. None if the runs do not
    hold out the same examples.

    Raises:
        InputError: One of them is not a complete run.
    """
    pairing = pair_sides(side_of(one), side_of(other))
    rows = _held_out(pairing, [], parts=(ALL,))
    if not rows:
        return None
    ((column, paired),) = rows.items()
    return HeldOutComparison(paired.difference, _verdict(column, paired, pairing))


def _verdict(column: Column, paired: Paired, pairing: Pairing, **corrected: Any) -> Verdict:
    others = paired.num_others if pairing.is_one_recipe else None
    return verdict_of(paired.difference, lower_is_better=column.lower_is_better, num_others=others, **corrected)


def _row(column: Column, paired: Paired, adjusted: float, verdict: Verdict) -> tuple[Cell, ...]:
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
        _p_cell(found.p_examples),
        _p_of_seeds(found.of_seeds),
        Cell(f"{found.num_examples:,}", value=found.num_examples),
        Cell(str(seeds), value=seeds),
        Cell(verdict.words, note=verdict.reason),
    )


def _p_cell(p: float) -> Cell:
    return Cell() if math.isnan(p) else Cell(f"{p:.4f}" if p >= 1e-3 else f"{p:.1e}", value=p)


def _p_of_seeds(of_seeds: Sequence[float]) -> Cell:
    """The sign-flip test over seeds, with what so few of them can give at the least."""
    if len(of_seeds) < 2:
        return Cell()
    p, needed = sign_flip_p(of_seeds), pairs_needed(ALPHA)
    few = f"{len(of_seeds)} seeds give at least {floor_of(len(of_seeds))}, {needed} are needed for {ALPHA:.2f}"
    return Cell(f"{p:.4f}", value=p, note=few if len(of_seeds) < needed else None)
