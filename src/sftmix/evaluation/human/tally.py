"""Compute statistics of judgments: shares with intervals, the lead of a model, and the agreement of annotators."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from sftmix.analysis.paired import Difference, hierarchical_difference
from sftmix.analysis.verdict import ComparisonVerdict, verdict_of
from sftmix.evaluation.human.judgments import Judgment
from sftmix.evaluation.results import wilson_interval

OUTCOMES = ("win", "tie", "lose")
POINTS = {"win": 1, "tie": 0, "lose": -1}


class Share(NamedTuple):
    """The share num / total in percent, with its 95% Wilson interval from low to high."""

    num: int
    total: int
    percent: float
    low: float
    high: float


class Kappa(NamedTuple):
    """Cohen's kappa of two annotators over the items that both have judged; None if all outcomes are equal."""

    first: int
    second: int
    num_items: int
    value: float | None


class Tally(NamedTuple):
    """The statistics of judgments of model a against model b."""

    num_items: int
    num_doubled: int  # Number of items that were judged by more than one annotator
    outcomes: Mapping[str, Share]  # Shares of win, tie and lose among all judgments
    decided: Share | None  # Share of wins among judgments that are not ties; None if all are ties
    lead: float  # Share of wins minus share of losses, in percentage points
    lead_over_items: Difference  # The lead with its interval over items. An item's weight is its number of judgments
    sign_p: float  # Two-sided p-value of the exact sign test over items, each with its net outcome
    sign_items: int  # Number of items whose net outcome is not a tie
    alpha: float | None  # Krippendorff's nominal alpha over doubled items; None if undefined
    kappas: Sequence[Kappa]  # Of each two annotators with common items
    left: Share | None  # Share of left among choices that are not ties, 50 without side bias; None if all are ties
    median_seconds: float  # Median time of a judgment

    @property
    def lead_interval(self) -> tuple[float, float] | None:
        """The 95% interval of the lead over items; None for a single item."""
        found = self.lead_over_items
        return None if math.isnan(found.low) else (found.low, found.high)

    @property
    def verdict(self) -> ComparisonVerdict:
        """The verdict on model a against model b, by the same rule as in all reports."""
        return verdict_of(self.lead_over_items, lower_is_better=False)


def tally_judgments(judgments: Sequence[Judgment]) -> Tally:
    """Return the statistics of judgments (at least one)."""
    from scipy.stats import binomtest

    counts = Counter(j.outcome for j in judgments)
    sides = Counter(j.choice for j in judgments)
    by_item: dict[str, dict[int, str]] = defaultdict(dict)
    for j in judgments:
        by_item[j.item][j.annotator] = j.outcome
    points = {i: [POINTS[outcome] for outcome in given.values()] for i, given in by_item.items()}
    nets = [sum(values) for values in points.values()]
    num_up, num_down = sum(n > 0 for n in nets), sum(n < 0 for n in nets)
    doubled = [given for given in by_item.values() if len(given) > 1]
    return Tally(
        num_items=len(by_item),
        num_doubled=len(doubled),
        outcomes={o: share_of(counts[o], len(judgments)) for o in OUTCOMES},
        decided=_share_or_none(counts["win"], counts["win"] + counts["lose"]),
        lead=100 * sum(nets) / len(judgments),
        lead_over_items=hierarchical_difference([[100.0 * net for net in nets]], [len(p) for p in points.values()]),
        sign_p=float(binomtest(num_up, num_up + num_down).pvalue) if num_up + num_down else 1.0,
        sign_items=num_up + num_down,
        alpha=krippendorff_alpha(doubled),
        kappas=_pairwise_kappas(doubled),
        left=_share_or_none(sides["left"], sides["left"] + sides["right"]),
        median_seconds=statistics.median(j.seconds for j in judgments),
    )


def share_of(count: int, total: int) -> Share:
    """Return the share count / total with its Wilson interval. `total` is at least 1."""
    return Share(count, total, 100 * count / total, *wilson_interval(count, total))


def _share_or_none(count: int, total: int) -> Share | None:
    return share_of(count, total) if total else None


def krippendorff_alpha(items: Sequence[Mapping[int, str]]) -> float | None:
    """Return Krippendorff's alpha of nominal outcomes, given by annotator for each item."""
    if len({outcome for given in items for outcome in given.values()}) < 2:
        return None
    import krippendorff
    import numpy as np

    counts = np.array([[list(given.values()).count(outcome) for outcome in OUTCOMES] for given in items])
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def _pairwise_kappas(items: Sequence[Mapping[int, str]]) -> list[Kappa]:
    """Return Cohen's kappa of each two annotators with common items; outcomes are given by annotator for each item."""
    from sklearn.metrics import cohen_kappa_score

    kappas = []
    for first, second in combinations(sorted({annotator for given in items for annotator in given}), 2):
        both = [(given[first], given[second]) for given in items if first in given and second in given]
        if both:
            is_one = len({outcome for pair in both for outcome in pair}) < 2  # kappa is undefined
            value = None if is_one else float(cohen_kappa_score(*zip(*both, strict=True)))
            kappas.append(Kappa(first, second, len(both), value))
    return kappas
