"""What judgments say: shares with intervals, whether the difference is one, and whether people agree."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from sftmix.analysis.paired import LEVEL, Difference, hierarchical_difference
from sftmix.analysis.verdict import ComparisonVerdict, verdict_of
from sftmix.evaluation.human.judgments import Judgment

OUTCOMES = ("win", "tie", "lose")
POINTS = {"win": 1, "tie": 0, "lose": -1}


class Share(NamedTuple):
    """A share with its 95% Wilson interval, in percent.

    Attributes:
        num: of how many it is so.
        total: of how many.
        percent: the share.
        low: lower end of the interval.
        high: upper end.
    """

    num: int
    total: int
    percent: float
    low: float
    high: float


class Kappa(NamedTuple):
    """Cohen's kappa of two annotators over the items that both have judged; None where one outcome is all there is."""

    first: int
    second: int
    num_items: int
    value: float | None


class Tally(NamedTuple):
    """What judgments of model a against model b say.

    Attributes:
        num_items: that were judged.
        num_doubled: of those, judged by more than one.
        outcomes: shares of win, tie and lose among all judgments.
        decided: share of wins among judgments that are no tie, or None where all are.
        lead: share of wins minus share of losses, in percentage points.
        lead_over_items: The lead with its interval over items; an item counts with all its judgments.
        sign_p: two-sided p-value of the exact sign test over items; by its net outcome each item counts once.
        sign_items: items whose net outcome is no tie.
        alpha: Krippendorff's, nominal, over doubled items; None where there is none, or one outcome is all there is.
        kappas: of pairs of annotators that share items.
        left: share of left among choices that are no tie, or None where all are: 50 without side bias.
        median_seconds: of a judgment.
    """

    num_items: int
    num_doubled: int
    outcomes: Mapping[str, Share]
    decided: Share | None
    lead: float
    lead_over_items: Difference
    sign_p: float
    sign_items: int
    alpha: float | None
    kappas: Sequence[Kappa]
    left: Share | None
    median_seconds: float

    @property
    def lead_interval(self) -> tuple[float, float] | None:
        """The 95% interval of the lead over items; None if there is one item."""
        found = self.lead_over_items
        return None if math.isnan(found.low) else (found.low, found.high)

    @property
    def verdict(self) -> ComparisonVerdict:
        """The verdict on model a against model b, by the rule of all reports."""
        return verdict_of(self.lead_over_items, lower_is_better=False)


def tally_judgments(judgments: Sequence[Judgment]) -> Tally:
    """Count judgments, of which there is at least one.

    Args:
        judgments: Judgments of any number of annotators.
    """
    from scipy.stats import binomtest

    counts = Counter(j.outcome for j in judgments)
    sides = Counter(j.choice for j in judgments)
    by_item: dict[str, dict[int, str]] = defaultdict(dict)
    for j in judgments:
        by_item[j.item][j.annotator] = j.outcome
    points = {i: [POINTS[outcome] for outcome in given.values()] for i, given in by_item.items()}
    nets = [sum(values) for values in points.values()]
    num_up, num_down = sum(n > 0 for n in nets), sum(n < 0 for n in nets)
    doubled = {i: given for i, given in by_item.items() if len(given) > 1}
    return Tally(
        num_items=len(by_item),
        num_doubled=len(doubled),
        outcomes={o: share_of(counts[o], len(judgments)) for o in OUTCOMES},
        decided=_share_or_none(counts["win"], counts["win"] + counts["lose"]),
        lead=100 * sum(nets) / len(judgments),
        lead_over_items=hierarchical_difference([[100.0 * net for net in nets]], [len(p) for p in points.values()]),
        sign_p=float(binomtest(num_up, num_up + num_down).pvalue) if num_up + num_down else 1.0,
        sign_items=num_up + num_down,
        alpha=krippendorff_alpha(list(doubled.values())),
        kappas=pairwise_kappas(list(doubled.values())),
        left=_share_or_none(sides["left"], sides["left"] + sides["right"]),
        median_seconds=statistics.median(j.seconds for j in judgments),
    )


def share_of(count: int, total: int) -> Share:
    """A share with its Wilson interval; total is at least 1."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(LEVEL, "wilson")
    return Share(count, total, 100 * count / total, 100 * float(interval.low), 100 * float(interval.high))


def _share_or_none(count: int, total: int) -> Share | None:
    return share_of(count, total) if total else None


def krippendorff_alpha(items: Sequence[Mapping[int, str]]) -> float | None:
    """Krippendorff's alpha of nominal outcomes; each item has them by annotator."""
    if len({outcome for given in items for outcome in given.values()}) < 2:
        return None
    import krippendorff
    import numpy as np

    counts = np.array([[list(given.values()).count(outcome) for outcome in OUTCOMES] for given in items])
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def pairwise_kappas(items: Sequence[Mapping[int, str]]) -> list[Kappa]:
    """Cohen's kappa of every two annotators that share items; each item has outcomes by annotator."""
    kappas = []
    for first, second in combinations(sorted({annotator for given in items for annotator in given}), 2):
        both = [(given[first], given[second]) for given in items if first in given and second in given]
        if both:
            kappas.append(Kappa(first, second, len(both), _kappa(both)))
    return kappas


def _kappa(both: Sequence[tuple[str, str]]) -> float | None:
    if len({outcome for pair in both for outcome in pair}) < 2:
        return None  # chance agrees always too
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(*zip(*both, strict=True)))
