"""Compare two recipes: every metric that both have by example, with a verdict on the difference."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.analysis.paired import ALPHA, Difference
from sftmix.analysis.permutation import sign_flip_p
from sftmix.analysis.verdict import Verdict, holm, verdict_of
from sftmix.errors import InputError
from sftmix.evaluation.results import LOSS, loss_of
from sftmix.provenance.runs import read_config, read_held_out, read_subsets
from sftmix.reports.page import Block, Cell, Page, write_pages
from sftmix.reports.tables.columns import (
    HELD_OUT,
    Column,
    Paired,
    difference_cell,
    disagreement,
    held_out_metrics,
    mean_cell,
    pair_up,
    read_columns,
)
from sftmix.reports.tables.groups import ALL, INTERVAL, SUBSETS
from sftmix.reports.tables.pairs import Pairing, pair_recipes, recipe_runs
from sftmix.reports.tables.paper import read_paper
from sftmix.reports.tables.scores import OFFLINE
from sftmix.terminal import counted

COLUMNS = ("a", "b", "a minus b [95%]", "p", "Holm p", "p examples", "p seeds", "examples", "seeds", "verdict")
OF_SEEDS = (
    "intervals are over pairs of seeds, by the scatter of the recipe's other runs; without two other runs they are "
    "over examples only"
)
Pairs = Sequence[tuple[Path, Path]]
Rows = dict[Column, Paired]


def compare(one: Path, other: Path, form: str = "text", *, styled: bool = False) -> str:
    """Return whether two recipes differ, for each metric that both have of the same examples.

    Each run is joined by the runs that differ only in the seed. Two runs of one recipe are compared as they are, and
    the other runs of the recipe show how far seeds scatter.

    Args:
        one: Run a.
        other: Run b.
        form: text, markdown, latex or csv.
        styled: Use the terminal's bold.

    Raises:
        ConfigError: If there is no such form.
        InputError: If they are not two runs, or nothing can be compared.
    """
    recipes = recipe_runs(one), recipe_runs(other)
    pairing = pair_recipes(*recipes)
    notes: list[str] = []
    losses = _held_out(pairing, notes)
    rows = {**losses, **_scores(pairing, _copies(losses), notes)}
    if not rows:
        raise InputError(f"compare=[{one.name},{other.name}]: {'; '.join(notes) or 'nothing that both have'}")
    block = Block("a minus b, paired by seed and example", ("of", "column"), COLUMNS)
    # if no example differs there is nothing to test, and other p-values are not corrected for it
    p_values = [paired.difference.p if any(paired.of_examples) else math.nan for paired in rows.values()]
    number = sum(not math.isnan(p) for p in p_values)
    adjusted = [
        paired.difference.p if math.isnan(p) else p for p, paired in zip(holm(p_values), rows.values(), strict=True)
    ]
    for (column, paired), p in zip(rows.items(), adjusted, strict=True):
        verdict = _verdict(column, paired, pairing, adjusted_p=p, num_comparisons=number)
        block.rows.append(_row(column, paired, p, verdict))
    head = [f"{one.name} against {other.name}", *pairing.head]
    notes += [
        OF_SEEDS if pairing.is_one_recipe else INTERVAL,
        f"verdict of a against b: by the interval over at least 2 seeds, whose p-value is p; Holm p is corrected for "
        f"{counted(number, 'row')}; p examples is over examples only, p seeds is a sign-flip test over seeds",
    ]
    return write_pages([Page(head[0], head, [block], notes)], form, styled=styled)


def _held_out(pairing: Pairing, notes: list[str], subsets: Sequence[str] = SUBSETS) -> Rows:
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
    subset_of = _subsets(pairs, notes) if len(subsets) > 1 else {}
    rows: Rows = {}
    for subset in subsets:
        members = [i for i in ids if subset == ALL or subset_of.get(i) == subset]
        both = [(held_out_metrics(a, members), held_out_metrics(b, members)) for a, b in losses]
        paired = pair_up(both, [held_out_metrics(loss, members) for loss in others])
        if paired is not None:
            name = "all" if subset == ALL else f"{subset} subset"
            rows[Column(HELD_OUT, None, "nats per token", name)] = paired
    return rows


def _holds_out(run: Path) -> bool:
    return (run / "val.parquet").is_file()


def _subsets(pairs: Pairs, notes: list[str]) -> dict[str, str]:
    """Return the subset of each held-out example, if all runs that are split by confidence agree."""
    found = [subset_of for pair in pairs for run in pair if (subset_of := _subsets_by_confidence(run))]
    if any(subset_of != found[0] for subset_of in found):
        notes.append("the runs have other subsets: losses by subset are not compared")
        return {}
    return found[0] if found else {}


def _subsets_by_confidence(run: Path) -> dict[str, str]:
    by = (read_config(run).get("split") or {}).get("by", "confidence")
    return read_subsets(run) if by == "confidence" else {}


def _copies(losses: Rows) -> set[str]:
    """Return the names under which suite=offline repeats the losses that are compared already."""
    subsets = {column.name.removesuffix(" subset") for column in losses}
    return {LOSS if subset == ALL else loss_of(subset) for subset in subsets}


def _scores(pairing: Pairing, copies: set[str], notes: list[str]) -> Rows:
    """Return the metrics of suites by question, separately for each judge and benchmark, without copies of losses."""
    read = [(read_columns(a), read_columns(b)) for a, b in pairing.pairs]
    beside = [read_columns(run) for run in pairing.others]
    rows: Rows = {}
    unpaired: dict[str, list[str]] = {}
    for column in dict.fromkeys(c for pair in read for columns in pair for c in columns):
        if column.suite == OFFLINE and column.name in copies:
            continue
        both = [(a[column], b[column]) for a, b in read if column in a and column in b]
        if mixed := disagreement(both):
            notes.append(f"{' '.join(_labels(column))}: not compared, {mixed}")
            continue
        raters = frozenset[str]().union(*(metrics.raters for pair in both for metrics in pair))
        others = [found[column] for found in beside if column in found and found[column].raters <= raters]
        paired = pair_up(both, [o for o in others if disagreement([*both, (o, o)]) is None])
        if paired is None:
            of, name = _labels(column)
            unpaired.setdefault(of, []).append(name)
            continue
        rows[column] = paired
        if paired.num_left_out:
            left_out = counted(paired.num_left_out, "question")
            notes.append(f"{' '.join(_labels(column))}: {left_out} that not all runs have alike are left out")
    for of, names in unpaired.items():
        notes.append(f"{of}, {', '.join(names)}: no pair of runs has both of the same examples")
    return rows


def _labels(column: Column) -> tuple[str, str]:
    suite = read_paper().suites.get(column.suite)
    title = suite.title if suite is not None and suite.judge is not None else column.suite
    is_known = column.benchmark in (title, column.name)
    words = [title, *([] if is_known else [column.benchmark]), *([f"by {column.judge}"] if column.judge else [])]
    return ", ".join(words), column.name


class HeldOutComparison(NamedTuple):
    """Held-out loss of one recipe minus that of another over their common seeds, in nats per response token."""

    difference: Difference
    verdict: Verdict


def compare_held_out(one: Path, other: Path) -> HeldOutComparison | None:
    """Return the row "held-out loss, all" of `compare`, without a correction for the other rows.

    None if the runs do not hold out the same examples.

    Raises:
        InputError: If one of them is not a complete run.
    """
    pairing = pair_recipes(recipe_runs(one), recipe_runs(other))
    rows = _held_out(pairing, [], subsets=(ALL,))
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
        mean_cell(paired.ours, decimals),
        mean_cell(paired.theirs, decimals),
        difference_cell(found, decimals),
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
    """Return the p-value of the sign-flip test over seeds; a note says which values so few seeds can give."""
    if len(of_seeds) < 2:
        return Cell()
    p, floor = sign_flip_p(of_seeds), 2.0 ** (1 - len(of_seeds))  # two of all 2^n signs are as extreme as the most
    few = f"{len(of_seeds)} seeds give at least {floor}, {math.ceil(1 - math.log2(ALPHA))} are needed for {ALPHA:.2f}"
    return Cell(f"{p:.4f}", value=p, note=few if floor > ALPHA else None)
