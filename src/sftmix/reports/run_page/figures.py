"""Figures of a page as SVG images whose colors follow the light or dark theme of the reader."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sftmix.analysis.scored_examples import ScoredExamples
from sftmix.colors import CONFIDENT, INK, LINE, ON_DARK, OTHER, PAPER, UNCONFIDENT
from sftmix.training.curves import Line, draw_curves, panels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 20_000  # Of the picture of a data map; more are drawn as a random sample
SUBSET_COLORS = {"confident": CONFIDENT, "unconfident": UNCONFIDENT, "none": OTHER}
THEME: dict[Any, Any] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": OTHER,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "grid.alpha": 1.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.facecolor": PAPER,
    "legend.framealpha": 0.85,
    "legend.edgecolor": LINE,
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sftmix",  # the same figure gives the same bytes
}


class Picture(NamedTuple):
    """An image for a page."""

    source: str  # SVG as a data URI
    title: str  # What the image shows, for readers who do not see it


def curve_pictures(recipes: Mapping[str, Sequence[Mapping[str, Line]]]) -> list[Picture]:
    """Return a picture of each panel of the training curves."""
    import matplotlib

    with matplotlib.rc_context(THEME):
        panels = panels_of(recipes)
        return [_picture(draw_curves(recipes, [panel], with_legend=False), panel.title) for panel in panels]


def map_picture(examples: ScoredExamples) -> Picture:
    """Return a picture of a data map."""
    import matplotlib

    axes = "rank against response length" if examples.has_ranks else "mean perplexity against its standard deviation"
    with matplotlib.rc_context(THEME):
        return _picture(draw_map(examples), f"Data map: {axes}")


def draw_map(examples: ScoredExamples) -> "Figure":
    """Draw a data map: confidence against variability, colored by subset.

    Examples with an infinite perplexity have no place in it. The ranks of a run that was split by its first epoch have
    no variability, so they are drawn against the length of the response.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogFormatter

    figure = Figure(figsize=(7.2, 4.4))
    axes = figure.add_subplot()
    shown = np.flatnonzero(np.isfinite(examples.confidence) & np.isfinite(examples.variability))
    if len(shown) > MOST_POINTS:
        shown = np.random.default_rng(0).choice(shown, MOST_POINTS, replace=False)
    up, across = -examples.confidence[shown], examples.variability[shown]
    if examples.has_ranks:
        up, across = 1 - examples.confidence[shown], examples.num_tokens[shown]
    colors = OTHER
    if examples.subset is not None:
        subsets = [examples.subset[k] for k in shown]
        colors = [SUBSET_COLORS.get(subset, OTHER) for subset in subsets]  # type: ignore[assignment]
    size = float(np.clip(6000 / max(1, len(shown)), 2, 14))
    axes.scatter(across, up, s=size, c=colors, alpha=0.6, linewidths=0, rasterized=True)
    if len(shown) and not examples.has_ranks and (across > 0).all():
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):  # 40, not 4 x 10^1
            axis.set_major_formatter(FuncFormatter(_short))
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.invert_yaxis()  # more confident at the top, as in the interactive map
    if examples.has_ranks:
        axes.set_xlabel("response length in tokens")
        axes.set_ylabel("rank of the loss in the first epoch (top: lowest)")
    else:
        axes.set_xlabel("standard deviation of the perplexity over the checkpoints")
        axes.set_ylabel("mean perplexity (top: more confident)")
    axes.grid()
    axes.set_axisbelow(True)
    return figure


def _short(value: float, _: object) -> str:
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if factor <= value < 1000 * factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def _picture(figure: "Figure", title: str) -> Picture:
    """Return a figure whose colors are variables that a media query sets."""
    figure.set_layout_engine(None)  # measuring every label takes as long as drawing
    width, height = figure.get_size_inches()
    top = 0.3 if figure.axes[0].get_title() else 0.1
    figure.subplots_adjust(left=0.8 / width, right=1 - 0.1 / width, bottom=0.48 / height, top=1 - top / height)
    content = io.StringIO()
    figure.savefig(content, format="svg", dpi=130, metadata={"Date": None})
    svg, light, dark = content.getvalue(), [], []
    for number, (color, on_dark) in enumerate(ON_DARK.items()):
        svg = svg.replace(color.lower(), f"var(--c{number})")
        light.append(f"--c{number}:{color}")
        dark.append(f"--c{number}:{on_dark}")
    start = svg.index("<defs>")
    style = f":root{{{';'.join(light)}}}@media(prefers-color-scheme:dark){{:root{{{';'.join(dark)}}}}}"
    fonts = "text{font-family:system-ui,sans-serif!important}"
    svg = f"{svg[:start]}<style>{style}{fonts}</style>{svg[start:]}"
    return Picture("data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii"), title)
