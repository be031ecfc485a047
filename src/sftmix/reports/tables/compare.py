"""Compare two recipes: every metric that both have by example, with a verdict on the difference."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.analysis.paired import ALPHA, Difference, sign_flip_p
from sftmix.analysis.verdict import ComparisonVerdict, holm, margin_verdicts, verdict_of
from sftmix.errors import InputError
from sftmix.evaluation.results import LOSS, OWN_HELD_OUT, loss_of
from sftmix.provenance.runs import ExampleLosses, read_held_out
from sftmix.reports.page import Block, Cell, ReportPage
from sftmix.reports.tables.columns import (
    HELD_OUT,
    OFFLINE,
    Column,
    Paired,
    difference_cell,
    disagreement,
    held_out_metrics,
    mean_cell,
    pair_up,
    read_columns,
)
from sftmix.reports.tables.groups import ALL, INTERVAL, SUBSETS, subsets_by_confidence
from sftmix.reports.tables.pairs import Pairing, pair_recipes, recipe_runs
from sftmix.reports.tables.paper import read_paper
from sftmix.terminal import counted

COLUMNS = ("a", "b", "a minus b [95%]", "p", "Holm p", "p examples", "p seeds", "examples", "seeds", "verdict")
OF_SEEDS = (
    "intervals are over pairs of seeds, by the scatter of the recipe's other runs; without two other runs they are "
    "over examples only"
)
Rows = dict[Column, Paired]


def compare(
    one: Path, other: Path, *, margin: float | None = None, subset_of: Mapping[str, str] | None = None
) -> ReportPage:
    """Return a table that says whether two recipes differ, for each metric that both have of the same examples.

    The runs that differ from a given run only in the seed are compared too. Two runs of one recipe are compared
    directly, and the other runs of the recipe show how far seeds scatter.

    Args:
        margin: Smallest difference of losses that matters, in nats per token. If given, the verdict on a loss is by
            `margin_verdicts`.
        subset_of: Subset of each held-out example, the same for all runs. None: by the split of the runs, if all runs
            have the same.

    Raises:
        InputError: If the folders are not two runs, or nothing can be compared.
    """
    recipes = recipe_runs(one), recipe_runs(other)
    pairing = pair_recipes(*recipes)
    if margin is not None and pairing.is_one_recipe:
        raise InputError(f"margin={margin}: {one.name} and {other.name} are runs of one recipe, expected two recipes")
    notes: list[str] = []
    losses = held_out_losses(pairing, notes, subset_of=subset_of)
    # suite=offline repeats these losses under other names
    subsets = {column.name.removesuffix(" subset") for column in losses}
    copies = {LOSS if subset == ALL else loss_of(subset) for subset in subsets}
    rows = {**losses, **scores_of_suites(pairing, copies, notes)}
    if not rows:
        raise InputError(f"compare=[{one.name},{other.name}]: {'; '.join(notes) or 'nothing that both have'}")
    block = Block("a minus b, paired by seed and example", ("of", "column"), COLUMNS)
    # if no example differs, nothing is tested, and the other p-values are not corrected for this row
    p_values = [paired.difference.p if any(paired.of_examples) else math.nan for paired in rows.values()]
    number = sum(not math.isnan(p) for p in p_values)
    by_margin: dict[Column, ComparisonVerdict] = {}
    if margin is not None:
        tested = {column: paired.difference for column, paired in rows.items() if column.is_loss}
        by_margin = dict(zip(tested, margin_verdicts(list(tested.values()), margin), strict=True))
    for (column, paired), p in zip(rows.items(), holm(p_values), strict=True):
        adjusted = paired.difference.p if math.isnan(p) else p
        verdict = by_margin.get(column) or _verdict(
            column, paired, pairing, adjusted_p=adjusted, num_comparisons=number
        )
        block.rows.append(_row(column, paired, adjusted, verdict))
    head = [f"{one.name} against {other.name}", *pairing.head]
    notes += [
        OF_SEEDS if pairing.is_one_recipe else INTERVAL,
        f"verdict of a against b: by the interval over at least 2 seeds, whose p-value is p; Holm p is corrected for "
        f"{counted(number, 'row')}; p examples is over examples only, p seeds is a sign-flip test over seeds",
    ]
    if by_margin:
        notes.append(
            f"verdict on a loss, by the margin of {margin} nats per token: supported, the interval is below 0 and the "
            f"difference at most -{margin}; negligible, the interval is between -{margin} and {margin}; not supported, "
            f"its lower end is above -{margin}; otherwise undecided. Corrected by Holm for "
            f"{counted(len(by_margin), 'row')}"
        )
    return ReportPage(head[0], head, [block], notes)


def held_out_losses(
    pairing: Pairing,
    notes: list[str],
    subsets: Sequence[str] = SUBSETS,
    subset_of: Mapping[str, str] | None = None,
) -> Rows:
    """Return the held-out losses of two recipes over all examples and by subset.

    Args:
        notes: Takes a line for what cannot be compared.
        subset_of: Subset of each held-out example. None: by the split of the runs.

    Raises:
        InputError: If a held-out example has no subset in `subset_of`.
    """
    losses = [(_losses(a), _losses(b)) for a, b in pairing.pairs]
    losses = [(a, b) for a, b in losses if a.nll and b.nll]
    if not losses:
        return {}
    num_tokens = losses[0][0].num_tokens
    if any(loss.num_tokens != num_tokens for pair in losses for loss in pair):
        notes.append("the runs hold out other examples, or other tokens of them: their losses are not compared")
        return {}
    others = [loss for run in pairing.others if (loss := _losses(run)).num_tokens == num_tokens]
    if subset_of is not None and (lacking := len(num_tokens.keys() - subset_of.keys())):
        raise InputError(
            f"subsets: has no confidence in {lacking:,} of the {counted(len(num_tokens), 'held-out example')} of the "
            f"compared runs, or its model was trained on them"
        )
    if subset_of is None and len(subsets) > 1:
        found = [own for pair in pairing.pairs for run in pair if (own := subsets_by_confidence(run))]
        if any(own != found[0] for own in found):
            notes.append(
                "the runs have other subsets: losses by subset are not compared; subsets=FOLDER, a run or a folder of "
                "scores, gives all of them the same"
            )
        elif found:
            subset_of = found[0]
    subset_of = subset_of or {}
    rows: Rows = {}
    for subset in subsets:
        members = [i for i in sorted(num_tokens) if subset == ALL or subset_of.get(i) == subset]
        both = [(held_out_metrics(a, members), held_out_metrics(b, members)) for a, b in losses]
        paired = pair_up(both, [held_out_metrics(loss, members) for loss in others])
        if paired is not None:
            name = "all" if subset == ALL else f"{subset} subset"
            rows[Column(HELD_OUT, None, "nats per token", name, lower_is_better=True)] = paired
    return rows


def _losses(run: Path) -> ExampleLosses:
    return read_held_out(run) if (run / "val.parquet").is_file() else ExampleLosses({}, {})


def scores_of_suites(pairing: Pairing, copies: set[str], notes: list[str]) -> Rows:
    """Return the metrics of suites by question, separately for each judge and benchmark, without `copies`."""
    read = [(read_columns(a), read_columns(b)) for a, b in pairing.pairs]
    of_others = [read_columns(run) for run in pairing.others]
    rows: Rows = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    for column in dict.fromkeys(c for pair in read for columns in pair for c in columns):
        own = column.suite == OFFLINE and column.benchmark.partition(",")[0] == OWN_HELD_OUT
        if own and column.name in copies:
            continue
        of, name = _labels(column)
        both = [(a[column], b[column]) for a, b in read if column in a and column in b]
        if mixed := disagreement(both):
            reasons.setdefault((of, f"not compared, {mixed}"), []).append(name)
            continue
        raters = frozenset[str]().union(*(metrics.raters for pair in both for metrics in pair))
        others = [found[column] for found in of_others if column in found and found[column].raters <= raters]
        paired = pair_up(both, [o for o in others if disagreement([*both, (o, o)]) is None])
        if paired is None:
            missing = [
                run for run, found in zip("ab", zip(*read, strict=True), strict=True) if column not in chain(*found)
            ]
            why = f"{missing[0]} has no such result" if missing else "no pair of runs has both of the same questions"
            reasons.setdefault((of, why), []).append(name)
            continue
        rows[column] = paired
        if paired.num_left_out:
            left_out = counted(paired.num_left_out, "question")
            reasons.setdefault((of, f"{left_out} that not all runs have alike are left out"), []).append(name)
    notes += [f"{of}, {', '.join(names)}: {why}" for (of, why), names in reasons.items()]
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
    verdict: ComparisonVerdict


def compare_held_out(one: Path, other: Path) -> HeldOutComparison | None:
    """Return the row "held-out loss, all" of `compare` without a correction for the other rows, or None.

    None if the runs do not hold out the same examples.

    Raises:
        InputError: If one of them is not a complete run.
    """
    pairing = pair_recipes(recipe_runs(one), recipe_runs(other))
    for column, paired in held_out_losses(pairing, [], subsets=(ALL,)).items():
        return HeldOutComparison(paired.difference, _verdict(column, paired, pairing))
    return None


def _verdict(column: Column, paired: Paired, pairing: Pairing, **corrected: Any) -> ComparisonVerdict:
    others = paired.num_others if pairing.is_one_recipe else None
    return verdict_of(paired.difference, lower_is_better=column.lower_is_better, num_others=others, **corrected)


def _row(column: Column, paired: Paired, adjusted: float, verdict: ComparisonVerdict) -> tuple[Cell, ...]:
    found = paired.difference
    suite = read_paper().suites.get(column.suite)
    decimals = 4 if suite is None else suite.decimals
    seeds = len(found.of_seeds)
    return (
        *map(Cell, _labels(column)),
        mean_cell(paired.ours, decimals),
        mean_cell(paired.theirs, decimals),
        difference_cell(found, decimals),
        *map(_p_cell, (found.p, adjusted, found.p_examples)),
        _p_of_seeds(found.of_seeds),
        Cell(f"{found.num_examples:,}", value=found.num_examples),
        Cell(str(seeds), value=seeds),
        Cell(verdict.words, note=verdict.reason),
    )


def _p_cell(p: float) -> Cell:
    return Cell() if math.isnan(p) else Cell(f"{p:.4f}" if p >= 1e-3 else f"{p:.1e}", value=p)


def _p_of_seeds(of_seeds: Sequence[float]) -> Cell:
    """Return the p-value of the sign-flip test over seeds. A note says which values few seeds can give."""
    if len(of_seeds) < 2:
        return Cell()
    p, floor = sign_flip_p(of_seeds), 2.0 ** (1 - len(of_seeds))  # at least two of all 2^n signs are this extreme
    few = f"{len(of_seeds)} seeds give at least {floor}, {math.ceil(1 - math.log2(ALPHA))} are needed for {ALPHA:.2f}"
    return Cell(f"{p:.4f}", value=p, note=few if floor > ALPHA else None)
