"""Training curves: an image of the metrics in `logs/metrics.csv`, of one run or of several recipes side by side."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sftmix.artifacts.manifest import read_json
from sftmix.colors import GROUPS, OTHER
from sftmix.terminal import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOGS, METRICS, IMAGE = "logs", "metrics.csv", "curves.png"
GAP = "val/loss_gap"  # computed here: unconfident minus confident
OF_SET = re.compile(r"val_(.+)/loss(?:_(confident|unconfident))?")  # losses of the files of data.val_path
STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
COLUMNS, WIDTH, HEIGHT = 3, 4.4, 3.0  # panels in a row; size of a panel in inches
MARKED = 8  # A line of at most this many points shows them


class Panel(NamedTuple):
    """Metrics that share an axis."""

    title: str
    unit: str
    metrics: Mapping[str, str]  # Label of each metric in the legend


LOSS = "nats per token"
PANELS = (
    Panel("Training loss", LOSS, {"train/ntp_loss": "NTP loss", "train/mixup_loss": "Mixup loss, per pair"}),
    Panel(
        "Held-out loss",
        LOSS,
        {"val/loss": "all", "val/loss_confident": "confident", "val/loss_unconfident": "unconfident"},
    ),
    Panel("Held-out loss, unconfident minus confident", LOSS, {GAP: "gap"}),
    Panel("Learning rate", "", {"train/lr": "lr"}),
    Panel("Norm of the gradient, before clipping", "", {"train/grad_norm": "norm"}),
    Panel(
        "NTP loss of the paired examples",
        LOSS,
        {"mixup/ntp_loss_confident": "confident", "mixup/ntp_loss_unconfident": "unconfident"},
    ),
    Panel(
        "Norm of the gradient at the head over NTP's",
        "",
        {
            "mixup/grad_norm_ratio": "mu * Mixup",
            "mixup/reweighting_norm_ratio": "mu * R (re-weighting)",
            "mixup/smoothing_norm_ratio": "mu * S (partner's label)",
            "mixup/gap_norm_ratio": "mu * J (Jensen gap)",
        },
    ),
    Panel(
        "Cosine with Mixup's gradient at the head",
        "",
        {
            "mixup/grad_span_cosine": "span of the subsets' NTP",
            "mixup/reweighting_cosine": "R (re-weighting)",
            "mixup/grad_cosine": "NTP",
        },
    ),
    Panel("Prediction of mixed states", "total variation", {"mixup/softmax_distance": "from the mixed predictions"}),
)


class Line(NamedTuple):
    """The values of a metric."""

    steps: list[int]  # Optimizer steps that were taken
    values: list[float]


def why_no_curves(folder: Path) -> str:
    """Return why a run without logged metrics has no curves."""
    metrics = folder / "metrics.json"
    if metrics.is_file() and read_json(metrics).get("steps") == 0:
        return "has no curves, since it took no steps: its model is the mean of the checkpoints of another run"
    return "logs/metrics.csv is missing or empty, expected a run that has begun"


def read_curves(folder: Path) -> dict[str, Line]:
    """Return the metrics of a run by name, also those of a run that is not finished.

    Held-out losses start before the first step, if `metrics.json` has them. `val/loss_gap` is the held-out loss of the
    unconfident subset minus that of the confident subset.
    """
    lines: dict[str, Line] = {}
    file = folder / LOGS / METRICS
    if file.is_file():
        with file.open(newline="") as handle:
            for row in csv.DictReader(handle):
                if not str(row.get("step") or "").isdigit():  # the last row of a run that is being written
                    continue
                for name, value in row.items():
                    if name and value and name != "step":
                        line = lines.setdefault(name, Line([], []))
                        line.steps.append(int(row["step"]) + 1)
                        line.values.append(float(value))
    if (folder / "metrics.json").is_file():
        metrics = read_json(folder / "metrics.json")
        sets = {f"val_{name}/loss": of_set.get("loss_before") for name, of_set in metrics.get("val_sets", {}).items()}
        for name, before in {"val/loss": metrics.get("val_loss_before"), **sets}.items():
            if isinstance(before, float) and name in lines:
                lines[name].steps.insert(0, 0)
                lines[name].values.insert(0, before)
    confident, unconfident = (lines.get(f"val/loss_{name}") for name in ("confident", "unconfident"))
    if confident is not None and unconfident is not None and confident.steps == unconfident.steps:
        differences = [u - c for c, u in zip(confident.values, unconfident.values, strict=True)]
        lines[GAP] = Line(confident.steps, differences)
    return lines


def panels_of(recipes: Mapping[str, Sequence[Mapping[str, Line]]]) -> list[Panel]:
    """Return the panels of which a run has a metric, with one for the files of `data.val_path` if there are any."""
    present = {name for runs in recipes.values() for lines in runs for name in lines}
    of_sets = {name: " ".join(filter(None, found.groups())) for name in present if (found := OF_SET.fullmatch(name))}
    panels = [panel for panel in PANELS if present & panel.metrics.keys()]
    return [*panels, Panel("Loss on other files", LOSS, dict(sorted(of_sets.items())))] if of_sets else panels


def draw_curves(
    recipes: Mapping[str, Sequence[Mapping[str, Line]]],
    panels: Sequence[Panel] | None = None,
    *,
    with_legend: bool = True,
) -> "Figure":
    """Draw one panel for each group of metrics that a run has.

    Several recipes differ in color, and the metrics of a panel in the style of the line. A recipe with several seeds is
    drawn as the mean of the steps that all seeds have, with a band from the lowest to the highest seed.

    Args:
        recipes: The metrics of the runs of each recipe, one for each seed, by the name of the recipe.
        panels: Panels to draw. None: those of which a run has a metric.
        with_legend: Name the colors of several recipes.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    panels = panels_of(recipes) if panels is None else panels
    num_columns = min(COLUMNS, max(1, len(panels)))
    num_rows = -(-len(panels) // num_columns)
    with_legend = with_legend and len(recipes) > 1
    height = num_rows * HEIGHT + (0.5 if with_legend else 0)
    figure = Figure(figsize=(num_columns * WIDTH, height), layout="constrained")
    for k, panel in enumerate(panels):
        axes = figure.add_subplot(num_rows, num_columns, k + 1)
        axes.set_title(panel.title, fontsize=10)
        axes.set_ylabel(panel.unit, fontsize=9)
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        _draw_panel(axes, panel, recipes)
    if with_legend:
        colors = [Line2D([], [], color=GROUPS[r % len(GROUPS)]) for r in range(len(recipes))]
        labels = [f"{recipe}, {counted(len(runs), 'seed')}" for recipe, runs in recipes.items()]
        figure.legend(colors, labels, loc="outside lower center", ncols=COLUMNS, fontsize=9, frameon=False)
    return figure


def _draw_panel(axes: "Axes", panel: Panel, recipes: Mapping[str, Sequence[Mapping[str, Line]]]) -> None:
    from matplotlib.lines import Line2D

    is_one = len(recipes) == 1
    present = {name for runs in recipes.values() for lines in runs for name in lines}
    labels = {name: label for name, label in panel.metrics.items() if name in present}
    for r, runs in enumerate(recipes.values()):
        for m, name in enumerate(labels):
            if not any(name in lines for lines in runs):
                continue
            color = GROUPS[(m if is_one else r) % len(GROUPS)]
            style = "-" if is_one else STYLES[m % len(STYLES)]
            found = [dict(zip(*lines[name], strict=True)) for lines in runs if name in lines]
            steps = sorted(set.intersection(*(set(values) for values in found)))
            of_step = [[values[step] for values in found] for step in steps]
            means = [sum(values) / len(values) for values in of_step]
            marker = "o" if len(steps) <= MARKED else None
            axes.plot(steps, means, style, color=color, linewidth=1.2, marker=marker, markersize=3)
            if len(found) > 1:
                lowest, highest = [min(values) for values in of_step], [max(values) for values in of_step]
                axes.fill_between(steps, lowest, highest, color=color, alpha=0.2, linewidth=0)
    if len(labels) > 1:
        handles = [
            Line2D(
                [],
                [],
                linestyle="-" if is_one else STYLES[m % len(STYLES)],
                color=GROUPS[m % len(GROUPS)] if is_one else OTHER,
            )
            for m in range(len(labels))
        ]
        axes.legend(handles, labels.values(), fontsize=7)


def write_curves(folder: Path) -> None:
    """Write `logs/curves.png` of a run, if the run has logged anything."""
    lines = read_curves(folder)
    if lines:
        draw_curves({folder.name: [lines]}).savefig(folder / LOGS / IMAGE, dpi=110)
