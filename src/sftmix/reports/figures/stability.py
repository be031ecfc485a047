"""Whether a cheaper reference is good enough: splits by other seeds, references, checkpoints or rules beside one."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftmix.analysis.stability import (
    Agreement,
    agreement,
    confident_half,
    dominance,
    probability_confident,
    share_of_mixed_tokens,
    spearman,
)
from sftmix.artifacts.files import write_bytes
from sftmix.colors import CONFIDENT, OTHER
from sftmix.errors import ConfigError, InputError
from sftmix.reports.figures.output import write_report
from sftmix.reports.figures.scores import ScoredRun, read_scored_run
from sftmix.reports.page import Block, Cell, ReportPage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RULES = ("random", "length")  # splits that need no run
SEED = 0
RANDOM = f"split.by=random split.seed={SEED}"
FEWEST = 4  # shared examples


class Split(NamedTuple):
    """A split beside the one of the first run."""

    name: str
    kind: str  # run, checkpoints or rule
    ids: list[str]
    confidence: NDArray[np.float64]  # The higher half is confident


class Row(NamedTuple):
    """A split and how far it agrees with that of the first run."""

    split: Split
    found: Agreement
    num_shared: int  # Examples that both have
    num_unshared: int  # Examples that only one of the two has


def stability(given: Sequence[str], root: Path) -> tuple[ReportPage, Path]:
    """Compare splits with the split of the first run. Return the page of the numbers and the folder of the files.

    Args:
        given: Runs, folders of scores, and `RULES`; the first is a run.

    Raises:
        InputError: If a run has no confidence or shares too few examples with the first one.
    """
    if not given or given[0] in RULES:
        shown = ", ".join(given)
        raise ConfigError(f"stability=[{shown}]: expected a run first, the others are compared with it")
    runs = [read_scored_run(name, root, "stability") for name in given if name not in RULES]
    for run in runs:
        if (run.examples.confidence == run.examples.confidence[0]).all():
            raise InputError(f"{run.folder}: all confidences are equal, so ids would decide the split")
    first = runs[0]
    rows = [_row(first, split) for split in _splits(first, runs[1:], [name for name in given if name in RULES])]
    page, probabilities = _page(first, runs, rows), _probabilities(runs)
    numbers: dict[str, Any] = {
        "first": first.name,
        "rows": [
            {"split": r.split.name, "kind": r.split.kind, "shared": r.num_shared, "unshared": r.num_unshared}
            | r.found._asdict()
            for r in rows
        ],
        "dominance": {run.name: dominance(_counted(run)) for run in runs},
    }
    if probabilities is not None:
        numbers["agreement_of_all"] = _add_probabilities(page, *probabilities[1:])
    folder = write_report(root, f"stability-{first.name}", page, numbers, _draw(first, rows))
    if probabilities is not None:
        write_bytes(folder / "probability.csv", _csv(*probabilities[:2]).encode())
    return page, folder


def _splits(first: ScoredRun, others: Sequence[ScoredRun], rules: Sequence[str]) -> Iterator[Split]:
    """Yield the splits that are compared with that of the first run."""
    for run in others:
        yield Split(run.name, "run", run.examples.ids, run.examples.confidence)
    ids, counted = first.examples.ids, _counted(first)
    number = counted.shape[1]
    for last in range(1, number):
        yield Split(f"last {last} of {number} checkpoints", "checkpoints", ids, -counted[:, -last:].mean(axis=1))
    for checkpoint in range(number - 1):
        yield Split(f"checkpoint {checkpoint + 1} only", "checkpoints", ids, -counted[:, checkpoint])
    for rule in rules:
        if rule == "random":
            from sftmix.data.pairing import random_subsets  # it imports torch

            values = np.array(random_subsets(ids, SEED), dtype=np.float64)
            yield Split(RANDOM, "rule", ids, values)
        else:
            yield Split("split.by=length", "rule", ids, -first.examples.num_tokens.astype(np.float64))


def _counted(run: ScoredRun) -> NDArray[np.float64]:
    """Return the perplexities under the checkpoints that count in the confidence, `[example, checkpoint]`."""
    found: NDArray[np.float64] = run.examples.perplexity[:, list(run.examples.used)]
    return found


def _row(first: ScoredRun, split: Split) -> Row:
    index = {example_id: k for k, example_id in enumerate(split.ids)}
    here = np.array([k for k, example_id in enumerate(first.examples.ids) if example_id in index], dtype=np.int64)
    if len(here) < FEWEST:
        raise InputError(
            f"{first.name} and {split.name} share {len(here)} scored training examples, expected at least {FEWEST}: "
            f"are they of the same data?"
        )
    ids = [first.examples.ids[k] for k in here]
    there = np.array([index[example_id] for example_id in ids])
    found = agreement(split.confidence[there], first.examples.confidence[here], ids, first.examples.num_tokens[here])
    return Row(split, found, len(here), len(first.examples) + len(split.ids) - 2 * len(here))


def _probabilities(runs: Sequence[ScoredRun]) -> tuple[list[str], NDArray[np.float64], int] | None:
    """Return the ids that all runs have, and in what share of the runs each is confident, and of how many runs.

    Folders with the same scores, such as a run and the scores that it was split by, count once.
    """
    runs = [run for k, run in enumerate(runs) if not any(_is_same(run, other) for other in runs[:k])]
    if len(runs) < 2:
        return None
    shared = set(runs[0].examples.ids).intersection(*(run.examples.ids for run in runs[1:]))
    ids = [example_id for example_id in runs[0].examples.ids if example_id in shared]
    if len(ids) < FEWEST:
        return None
    confidences = []
    for run in runs:
        index = {example_id: k for k, example_id in enumerate(run.examples.ids)}
        confidences.append(run.examples.confidence[[index[example_id] for example_id in ids]])
    return ids, probability_confident(confidences, ids), len(runs)


def _is_same(one: ScoredRun, other: ScoredRun) -> bool:
    return one.examples.ids == other.examples.ids and np.array_equal(one.examples.confidence, other.examples.confidence)


def _page(first: ScoredRun, runs: Sequence[ScoredRun], rows: Sequence[Row]) -> ReportPage:
    columns = ("examples", "same subset", "95%", "Spearman", "95%", "cross-median pairs", "95%", "by mixed tokens")
    block = Block("Splits beside the first run", ("split",), columns)
    for row in rows:
        cells = [Cell(f"{row.num_shared:,}")]
        for value in (row.found.agreement, row.found.rho, row.found.crossing):
            if value is row.found.rho and (row.split.name == RANDOM or np.isnan(value.value)):
                cells += [Cell("-"), Cell("-")]  # a random split has no order, and equal lengths have none
                continue
            interval = f"[{value.low:.3f}, {value.high:.3f}]"
            cells += [Cell(f"{value.value:.3f}", value=value.value, low=value.low, high=value.high), Cell(interval)]
        block.rows.append((Cell(row.split.name), *cells, Cell(f"{row.found.crossing_tokens:.3f}")))
    of_runs = Block(
        "What decides the confidence",
        ("run",),
        ("Spearman with length", "mixed tokens", "variance by checkpoint", "by the 1% farthest examples"),
    )
    for run in runs:
        examples, found = run.examples, dominance(_counted(run))
        half = confident_half(examples.confidence, examples.ids)
        rho = spearman(examples.confidence, examples.num_tokens.astype(np.float64))
        of_runs.rows.append(
            (
                Cell(run.name),
                Cell("-" if np.isnan(rho) else f"{rho:.3f}"),
                Cell(f"{share_of_mixed_tokens(half, examples.num_tokens):.1%}"),
                Cell(", ".join("-" if np.isnan(share) else f"{share:.0%}" for share in found.checkpoints)),
                Cell("-" if np.isnan(found.largest) else f"{found.largest:.0%}"),
            )
        )
    page = ReportPage(
        "stability",
        [f"Stability of the split of {first.name}: {len(first.examples):,} training examples"],
        [block, of_runs],
        [
            "cross-median pairs: expected share of a split's random pairs whose two examples are on different sides of "
            "the first run's median: 0.5 for a random split, 1 for the same or the reversed split (no example in the "
            "same subset); by mixed tokens: each pair counts min(N_c, N_u)",
            "intervals: 1,000 bootstrap draws of examples, ranked and split anew; they hold for other examples, not "
            "for other seeds",
            "rows of checkpoints share checkpoints with the confidence that they are compared with",
            "mixed tokens: expected share of the response tokens that are mixed, random pairs of this split; variance: "
            "of the mean perplexity over examples, Cov(Perp_c / C, mean) / Var(mean)",
        ],
    )
    for row in rows:
        if row.num_unshared:
            page.notes.append(f"{row.split.name}: {row.num_unshared:,} examples are only in one of the two")
    for run in runs:
        if run.num_infinite:
            page.notes.append(
                f"{run.name}: {run.num_infinite:,} examples have an infinite perplexity: the least confident"
            )
    return page


def _add_probabilities(page: ReportPage, probability: NDArray[np.float64], num_runs: int) -> dict[str, float]:
    """Add to a page, and return, the shares of the examples on which all runs agree."""
    shares = {}
    block = Block(f"Probability of being confident over {num_runs} runs", ("runs that agree",), ("examples", "share"))
    for name, chosen in (
        ("confident in all", probability == 1),
        ("unconfident in all", probability == 0),
        ("neither", (probability > 0) & (probability < 1)),
    ):
        shares[name] = float(chosen.mean())
        block.rows.append((Cell(name), Cell(f"{int(chosen.sum()):,}"), Cell(f"{chosen.mean():.1%}")))
    page.blocks.append(block)
    page.notes.append("probability.csv: in what share of the runs each example is confident")
    return shares


def _csv(ids: Sequence[str], probability: NDArray[np.float64]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["example_id", "probability_confident"])
    writer.writerows(zip(ids, (f"{p:g}" for p in probability), strict=True))
    return out.getvalue()


def _draw(first: ScoredRun, rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1.5 + 0.34 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    for k, row in enumerate(rows):
        value, color = row.found.crossing, OTHER if row.split.kind == "rule" else CONFIDENT
        axes.hlines(k, value.low, value.high, color=color, lw=2)
        axes.plot(value.value, k, "o", color=color, ms=6, mfc=color if row.split.kind != "checkpoints" else "white")
    axes.axvline(0.5, color=OTHER, ls=":", lw=1)
    axes.axvline(1.0, color=OTHER, ls=":", lw=1)
    axes.set(ylim=(max(1, len(rows)) - 0.5, -0.5), xlim=(0.45, 1.02))
    axes.set_yticks(range(len(rows)), [row.split.name for row in rows], fontsize=8, parse_math=False)
    axes.set_xlabel("cross-median pairs of the first run (0.5: random split, 1: same split)", fontsize=9)
    axes.set_title(f"beside {first.name}", fontsize=9, parse_math=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return figure
