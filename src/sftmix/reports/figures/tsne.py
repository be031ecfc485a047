"""Figure 1: t-SNE of the hidden states of the most and least confident examples, and how far they lie apart."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sftmix.analysis.proportions import Estimate
from sftmix.analysis.separation import (
    FEWEST,
    FOLDS,
    PENALTY,
    SHUFFLES,
    Separation,
    longer_half,
    plane,
    separation,
    silhouettes,
)
from sftmix.colors import CONFIDENT, UNCONFIDENT
from sftmix.config.model import Model
from sftmix.errors import InputError
from sftmix.reports.figures.hidden_states import PLACES, hidden_states
from sftmix.reports.figures.output import write_report
from sftmix.reports.figures.scores import ScoredRun, extremes
from sftmix.reports.page import Block, Cell, ReportPage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESPONSE_NOTE = (
    "the state of the last token has seen the response, whose loss is the confidence; the state of at=prompt has not"
)


def tsne(
    run: ScoredRun, k: int, at: str, model: Model | None, root: Path, *, show_progress: bool = True
) -> tuple[ReportPage, Path]:
    """Draw Figure 1 of the paper for a run. Return the page of its numbers and the folder of the files.

    Args:
        k: Number of the most, and of the least confident examples.
        at: Token whose hidden state is drawn, a key of `PLACES`.
        model: The model of the hidden states, or None (`hidden_states`).

    Raises:
        InputError: If there are too few examples.
    """
    chosen, examples = extremes(run, k), run.examples
    if len(chosen.confident) < FEWEST:
        number = f"{len(chosen.confident)} most and as many least confident examples"
        raise InputError(f"{run.folder}: k={k} gives the {number}, expected at least {FEWEST} of each for a probe")
    ids = [examples.ids[i] for i in chosen.both]
    found = hidden_states(run.folder, ids, at, model, root, show_progress=show_progress)
    members = chosen.both[found.known]
    is_confident = found.known < len(chosen.confident)
    num_tokens = examples.num_tokens[members]
    try:
        numbers = separation(found.states, is_confident, num_tokens)
    except ValueError as error:
        raise InputError(f"{run.folder}: under {found.model}, {error}") from None
    points = plane(found.states)
    labels = [is_confident, np.random.default_rng(0).permutation(is_confident), longer_half(num_tokens)]
    on_plane = silhouettes(points, labels)
    lacking = len(ids) - len(members)
    page = _page(run, numbers, on_plane, num_tokens, is_confident, found.model, at)
    if lacking:
        page.head.append(f"{lacking:,} of the {len(ids):,} examples do not fit {found.model} and are left out")
    model_name = "" if found.model == run.name else f"-{found.model}"
    name = f"figure1-{run.name}{model_name}-{at}-k{len(chosen.confident)}"
    content = {
        "run": run.name,
        "model": found.model,
        "at": at,
        "confident": int(is_confident.sum()),
        "unconfident": int((~is_confident).sum()),
        "median_response_tokens": {
            name: float(np.median(num_tokens[mask])) for name, mask in _by_subset(is_confident).items()
        },
        "probe": numbers,
        "silhouette": dict(zip(("own", "shuffled", "length"), on_plane, strict=True)),
    }
    return page, write_report(root, name, page, content, _draw(points, is_confident, numbers, found.model, at))


def _by_subset(is_confident: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    return {"confident": is_confident, "unconfident": ~is_confident}


def _page(
    run: ScoredRun,
    found: Separation,
    on_plane: list[float],
    num_tokens: NDArray[np.int64],
    is_confident: NDArray[np.bool_],
    model: str,
    at: str,
) -> ReportPage:
    medians = {name: np.median(num_tokens[mask]) for name, mask in _by_subset(is_confident).items()}
    probe = Block("Linear probe", ("labels",), ("examples", "held-out accuracy", "95% interval"))
    matched = found.matched if found.matched is not None else f"only {found.num_pairs} pairs"
    for label, number, value in (
        ("confident / unconfident", found.num_examples, found.probe),
        ("the same, pairs of equal response length", 2 * found.num_pairs, matched),
        ("the same, from the length only", found.num_examples, found.length_only),
        ("the same, shuffled", found.num_examples, f"{found.shuffled[0]:.3f} to {found.shuffled[1]:.3f}"),
        ("longer / shorter half of the responses", found.num_examples, found.length_split),
    ):
        probe.rows.append((Cell(label), Cell(f"{number:,}"), *_cells(value)))
    silhouette = Block("Silhouette on the plane", ("labels",), ("silhouette",))
    for label, score in zip(("confident / unconfident", "shuffled", "longer / shorter half"), on_plane, strict=True):
        silhouette.rows.append((Cell(label), Cell(f"{score:.3f}", value=score)))
    return ReportPage(
        "figure1",
        [
            f"Figure 1: {int(is_confident.sum()):,} most and {int((~is_confident).sum()):,} least confident of the "
            f"{len(run.examples):,} training examples of {run.name}",
            f"hidden states: last layer of {model}, at {PLACES[at]}",
            f"median response length: {medians['confident']:g} tokens (confident), {medians['unconfident']:g} "
            f"(unconfident)",
            in_words(found),
        ],
        [probe, silhouette],
        [
            f"probe: logistic regression on standardized states, penalty C={PENALTY}, {FOLDS} stratified folds, "
            f"each example predicted once; Wilson's interval over examples, or over pairs, which are never divided",
            "pairs: a confident and an unconfident example with the same number of response tokens, at random, each "
            "example once; length only: log tokens and its square",
            f"shuffled: lowest and highest of {SHUFFLES} permutations (silhouette: one)",
            "t-SNE: perplexity 30 (fewer examples: a third of them), begins at the first two principal components; its "
            "distances are not those of the states, so the probe is the number that counts",
            *([RESPONSE_NOTE] if at == "response" else []),
        ],
    )


def in_words(found: Separation) -> str:
    """Return what the probe says about the two subsets, and nothing that its intervals do not carry."""
    right = f"the probe is right for {found.probe.as_percent()} of held-out examples (chance: 50%)"
    if found.probe.low <= max(0.5, found.shuffled[1]):
        return f"{right}: not better than chance"
    if found.matched is None:
        return f"{right}; whether by more than length is open: only {found.num_pairs} pairs of equal length"
    matched = f"{right}, in pairs of equal response length for {found.matched.as_percent()}"
    if found.matched.low <= 0.5:
        return f"{matched}: no separation beyond length is shown"
    return f"{matched}: the two lie apart by more than length"


def _cells(value: Estimate | str) -> tuple[Cell, Cell]:
    if isinstance(value, str):
        return Cell(value), Cell()
    text = f"[{value.low:.3f}, {value.high:.3f}]"
    return Cell(f"{value.value:.3f}", value=value.value, low=value.low, high=value.high, n=value.n), Cell(text)


def _draw(
    points: NDArray[np.float64], is_confident: NDArray[np.bool_], found: Separation, model: str, at: str
) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    order = np.random.default_rng(0).permutation(len(points))  # neither subset hides the other
    colors = np.where(is_confident, CONFIDENT, UNCONFIDENT)[order]
    size = float(np.clip(12_000 / len(points), 3, 25))
    axes.scatter(points[order, 0], points[order, 1], c=colors, s=size, alpha=0.6, linewidths=0, rasterized=True)
    for name, mask in _by_subset(is_confident).items():
        color = CONFIDENT if name == "confident" else UNCONFIDENT
        axes.scatter(
            [], [], c=color, s=30, label=f"{int(mask.sum()):,} {'most' if color == CONFIDENT else 'least'} confident"
        )
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel("t-SNE 1")
    axes.set_ylabel("t-SNE 2")
    matched = "too few pairs" if found.matched is None else f"{found.matched.value:.2f}"
    axes.set_title(
        f"{model}, last hidden state at the end of the {'example' if at == 'response' else 'prompt'}\n"
        f"linear probe {found.probe.value:.2f}, pairs of equal length {matched}, length only "
        f"{found.length_only.value:.2f}",
        fontsize=9,
        parse_math=False,
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=2, frameon=False, markerscale=1.2)
    return figure
