"""Figure 3: the distributions of confidence of groups or sources of examples."""

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sftmix.analysis.distributions import Comparison, compare_groups, densities
from sftmix.colors import GROUPS
from sftmix.data.census import first_few
from sftmix.errors import InputError
from sftmix.reports.figures.output import write_report
from sftmix.reports.figures.scores import ScoredRun
from sftmix.reports.page import Block, Cell, ReportPage
from sftmix.terminal import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 10  # examples of a group that is shown
MOST = 8  # groups that are shown: the largest
LONGEST = 40  # characters of a name in the figure
Groups = dict[str, NDArray[np.float64]]


def confidence_by_group(run: ScoredRun, by: str | None, root: Path) -> tuple[ReportPage, Path]:
    """Draw Figure 3 of the paper for a run. Return the page of its numbers and the folder of the files.

    Args:
        by: `group` or `source`. If None, the groups if there are several, otherwise the sources.

    Raises:
        InputError: If there are not two groups of enough examples, all confidences of a group are equal, or the
            confidences are ranks.
    """
    if run.examples.has_ranks:
        raise InputError(
            f"{run.folder}: its confidences are ranks within windows of its first epoch, expected perplexities: choose "
            f"a run with confidence.from=reference or base, or a folder of scores"
        )
    by, groups, left_out = _groups(run, by)
    try:
        logs = {name: np.log(-values) for name, values in groups.items()}
        density = densities([values[np.isfinite(values)] for values in logs.values()])
        compared = {pair: compare_groups(logs[pair[0]], logs[pair[1]]) for pair in combinations(groups, 2)}
    except ValueError:
        same = next(name for name, values in groups.items() if len(set(values[np.isfinite(values)])) < 2)
        raise InputError(f"{run.folder}: {by} {same} has no two different finite confidences") from None
    page = _page(run, by, groups, compared)
    if left_out:
        page.notes.append(f"not among the {MOST} largest, or under {FEWEST} examples: {', '.join(left_out)}")
    numbers = {
        "run": run.name,
        "by": by,
        "groups": {name: _quantiles(values) | {"n": len(values)} for name, values in groups.items()},
        "comparisons": {" / ".join(pair): found for pair, found in compared.items()},
    }
    drawing = _draw(list(groups), density.grid, density.densities)
    return page, write_report(root, f"figure3-{run.name}-{by}", page, numbers, drawing)


def _groups(run: ScoredRun, by: str | None) -> tuple[str, Groups, list[str]]:
    """Return by what the examples are grouped, the confidences of the groups to show, and the other groups."""
    columns = {"group": run.examples.group, "source": run.examples.source}
    if by is None:
        by = next((name for name, labels in columns.items() if len(set(labels) - {""}) > 1), "group")
    labels = np.asarray(columns[by])
    names = sorted(set(columns[by]) - {""})
    groups = {name: run.examples.confidence[labels == name] for name in names}
    largest = sorted((name for name in groups if len(groups[name]) >= FEWEST), key=lambda name: -len(groups[name]))
    shown = sorted(largest[:MOST])
    if len(shown) < 2:
        by_size = sorted(groups, key=lambda name: -len(groups[name]))
        have = first_few([f"{name} ({len(groups[name]):,})" for name in by_size]) or "none"
        raise InputError(
            f"{run.folder}: expected two {by}s of at least {FEWEST} training examples, found {have}; data with groups: "
            f"data=alpaca_quality, or 'data.columns={{group: NAME}}'"
        )
    return by, {name: groups[name] for name in shown}, [name for name in groups if name not in shown]


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(("q25", "median", "q75"), np.quantile(values, [0.25, 0.5, 0.75], method="lower"), strict=True))


def _page(run: ScoredRun, by: str, groups: Groups, compared: dict[tuple[str, str], Comparison]) -> ReportPage:
    of_groups = Block("Confidence", (by,), ("examples", "median", "25% to 75%"))
    for name, values in groups.items():
        q25, median, q75 = _quantiles(values).values()
        of_groups.rows.append(
            (Cell(name), Cell(f"{len(values):,}"), Cell(f"{median:.2f}"), Cell(f"{q25:.2f} to {q75:.2f}"))
        )
    of_pairs = Block("Overlap", ("pair",), ("overlap coefficient", "95% interval", "KS distance", "p"))
    for pair, found in compared.items():
        interval = f"[{found.overlap.low:.3f}, {found.overlap.high:.3f}]"
        p = f"{found.p:.2g}" if found.p >= 1e-100 else "< 1e-100"
        cells = f"{found.overlap.value:.3f}", interval, f"{found.ks:.3f}", p
        of_pairs.rows.append((Cell(" / ".join(pair)), *map(Cell, cells)))
    notes = [
        "overlap coefficient: integral of the smaller of two densities, 0 (apart) to 1 (the same), of Gaussian kernel "
        "densities (Scott's bandwidth) of the log of the mean perplexity; interval from 1,000 bootstrap draws",
        "KS: two-sample Kolmogorov-Smirnov; with many examples p is small for differences of no importance",
    ]
    if run.num_infinite:
        notes.append(f"{run.num_infinite:,} examples have an infinite perplexity: they enter KS and the medians only")
    return ReportPage("figure3", [f"Figure 3: confidence by {by} of {run.name}"], [of_groups, of_pairs], notes)


def _draw(names: list[str], grid: NDArray[np.float64], densities: list[NDArray[np.float64]]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    perplexity = np.exp(grid)
    for k, density in enumerate(densities):
        color = GROUPS[k % len(GROUPS)]
        axes.plot(perplexity, density, color=color, lw=1.6, ls="--" if k >= len(GROUPS) else "-", label=f"group {k}")
        axes.fill_between(perplexity, density, color=color, alpha=0.25, lw=0)
    highest = max(density.max() for density in densities)
    shown = perplexity[np.max(densities, axis=0) > 0.01 * highest]
    axes.set_xscale("log")
    axes.set_xlim(shown[-1], shown[0])  # more confident to the right
    decades = np.array([1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1e3, 1e4, 1e5, 1e6])
    axes.set_xticks(decades[(decades > shown[0]) & (decades < shown[-1])])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(ylim=(0, 1.08 * highest), yticks=[])
    axes.set_xlabel("mean perplexity over the checkpoints (log scale; more confident to the right)")
    axes.set_ylabel("density")
    axes.spines[["top", "right"]].set_visible(False)
    for text, name in zip(axes.legend(frameon=False).get_texts(), names, strict=True):
        text.set(text=one_line(name)[:LONGEST], parse_math=False)  # a name may begin with _ or hold a $
    return figure
