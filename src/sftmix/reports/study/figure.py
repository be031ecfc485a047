"""The figure of a study: effects with intervals, the trade between the subsets, gaps, and calibration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftmix.analysis.paired import Difference, mean_and_sd
from sftmix.colors import CONFIDENT, GROUPS, OTHER, UNCONFIDENT
from sftmix.errors import InputError
from sftmix.evaluation.offline.scores import SUBSETS
from sftmix.reports.study.measures import Study
from sftmix.reports.study.protocol import Contrast, Measure, Protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sftmix.reports.study.page import ClaimResult

SUBSET_COLORS = {"confident": CONFIDENT, "unconfident": UNCONFIDENT}


def draw_study(protocol: Protocol, study: Study, results: Sequence["ClaimResult"], margin: float) -> "Figure":
    """Draw the contrasts of all claims, the effect of mu by subset, the losses by subset, and the calibration.

    Losses by subset and calibration are left out before a run is evaluated by suite=offline.
    """
    from matplotlib.figure import Figure

    num_effects = sum(found.difference is not None for r in results for found in (r.primary, *r.others))
    figure = Figure(figsize=(12, max(7.5, 3.5 + 0.32 * num_effects)), layout="constrained")
    is_evaluated = any(run.evaluations for arm in study.arms.values() for run in arm.values())
    grid = figure.add_gridspec(3 if is_evaluated else 1, 2, width_ratios=(1.35, 1))
    _draw_effects(figure.add_subplot(grid[:, 0]), results, margin)
    _draw_mu(figure.add_subplot(grid[0, 1]), protocol, study, margin)
    if is_evaluated:
        _draw_gaps(figure.add_subplot(grid[1, 1]), study)
        _draw_calibration(figure.add_subplot(grid[2, 1]), study)
    return figure


def _draw_effects(axes: "Axes", results: Sequence["ClaimResult"], margin: float) -> None:
    """Draw each contrast of losses with its interval beside the margin. Primary contrasts are bold."""
    shown = [
        (found, result if found is result.primary else None)
        for result in results
        for found in (result.primary, *result.others)
        if found.difference is not None and found.contrast.measure.name not in ("Brier", "ECE", "accuracy", "entropy")
    ]
    axes.axvspan(-margin, margin, color=OTHER, alpha=0.15, linewidth=0)
    axes.axvline(0, color=OTHER, linewidth=0.8)
    labels = []
    for k, (found, result) in enumerate(shown):
        assert found.difference is not None
        color = SUBSET_COLORS.get(str(found.contrast.measure.subset), GROUPS[-1])
        _error_bar(axes, found.difference, -k, color, horizontal=True)
        words = f"{found.contrast.a} - {found.contrast.b}, {found.contrast.measure.in_words}"
        labels.append(words if result is None else f"{result.claim.name}: {words}")
        if result is not None and result.verdict is not None:
            axes.annotate(
                result.verdict.words, (1, -k), xycoords=("axes fraction", "data"), xytext=(-3, 4),
                textcoords="offset points", ha="right", fontsize=8,
            )  # fmt: skip
    axes.set_yticks([-k for k in range(len(labels))], labels, fontsize=8)
    for label, (_, result) in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if result is not None else "normal")
    axes.set_xlabel("nats per token, below 0: the first arm is better; gray: the margin", fontsize=9)
    axes.set_title("Effects with 95% intervals", fontsize=10)


def _draw_mu(axes: "Axes", protocol: Protocol, study: Study, margin: float) -> None:
    """Draw the held-out loss of each subset against mu, minus that of the smallest mu."""
    axes.set_title("Held-out loss by the weight mu of the Mixup term", fontsize=10)
    mus = sorted(mu for mu, arm in protocol.mu.items() if arm in study.arms)
    axes.axhline(0, color=OTHER, linewidth=0.8)
    axes.axhspan(-margin, margin, color=OTHER, alpha=0.15, linewidth=0)
    for offset, subset in enumerate((None, *SUBSETS)):
        color = SUBSET_COLORS.get(str(subset), GROUPS[-1])
        found = []
        for mu in mus[1:]:
            contrast = Contrast(protocol.mu[mu], protocol.mu[mus[0]], Measure("held-out loss", subset))
            if study.seeds(contrast):
                found.append((mu + 0.006 * (offset - 1), study.difference(contrast)))
        for mu, difference in found:
            _error_bar(axes, difference, mu, color)
        if found:
            points = [(mus[0], 0.0), *((mu, difference.mean) for mu, difference in found)]
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1, label=subset or "all")
    axes.set_xlabel("mu", fontsize=9)
    axes.set_ylabel(f"minus mu={mus[0]:g}" if mus else "", fontsize=9)
    if axes.lines[1:]:
        axes.legend(fontsize=8)


def _draw_gaps(axes: "Axes", study: Study) -> None:
    """Draw training and held-out loss of each subset and arm."""
    axes.set_title("Training loss (open) and held-out loss (filled) by subset", fontsize=10)
    arms = []
    for arm, runs in study.arms.items():
        for subset in SUBSETS:
            try:
                pairs = [
                    [study.value(arm, seed, Measure(name, subset)) for name in ("training loss", "held-out loss")]
                    for seed in runs
                ]
            except InputError:  # not evaluated
                continue
            arms += [arm] if arm not in arms else []
            training, held_out = (mean_and_sd(values)[0] for values in zip(*pairs, strict=True))
            k, color = arms.index(arm), SUBSET_COLORS[subset]
            axes.plot([k, k], [training, held_out], color=color, linewidth=1)
            axes.plot([k], [training], "o", markerfacecolor="none", color=color)
            axes.plot([k], [held_out], "o", color=color, label=subset if k == 0 else None)
    axes.set_xticks(range(len(arms)), arms, fontsize=8)
    axes.set_ylabel("nats per token", fontsize=9)
    if arms:
        axes.legend(fontsize=8)


def _draw_calibration(axes: "Axes", study: Study) -> None:
    """Draw the calibration error of each arm on each set: one point for each seed, and the mean."""
    axes.set_title("Expected calibration error of the next token", fontsize=10)
    sets = dict.fromkeys(s for arm in study.arms.values() for run in arm.values() for s in run.evaluations)
    arms = [arm for arm, runs in study.arms.items() if any(run.evaluations for run in runs.values())]
    for s, of_set in enumerate(sets):
        for k, arm in enumerate(arms):
            runs = study.arms[arm].values()
            values = [run.evaluations[of_set].scores["ECE"] for run in runs if of_set in run.evaluations]
            if values:
                x = s + 0.8 * (k - (len(arms) - 1) / 2) / len(arms)
                color = GROUPS[k % len(GROUPS)]
                axes.plot([x] * len(values), values, ".", color=color, alpha=0.4)
                axes.plot([x], [mean_and_sd(values)[0]], "_", color=color, markersize=12, label=arm if s == 0 else None)
    axes.set_xticks(range(len(sets)), list(sets), fontsize=8)
    axes.set_ylabel("ECE", fontsize=9)
    if sets:
        axes.legend(fontsize=8)


def _error_bar(axes: "Axes", found: Difference, at: float, color: str, *, horizontal: bool = False) -> None:
    ends = [[found.mean - found.low], [found.high - found.mean]]
    style = {"fmt": "o", "color": color, "markersize": 4, "capsize": 3, "linewidth": 1.2}
    if horizontal:
        axes.errorbar([found.mean], [at], xerr=ends, **style)  # type: ignore[arg-type]
    else:
        axes.errorbar([at], [found.mean], yerr=ends, **style)  # type: ignore[arg-type]
