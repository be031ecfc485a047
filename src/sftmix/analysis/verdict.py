"""The verdict on a difference: better, worse, or no clear difference. Every report uses this one rule."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sftmix.analysis.paired import ALPHA, Difference
from sftmix.terminal import counted

NO_CLEAR_DIFFERENCE = "no clear difference"
SUPPORTED, NEGLIGIBLE, NOT_SUPPORTED, UNDECIDED = "supported", "negligible", "not supported", "undecided"
FEWEST_EXAMPLES = 20  # With fewer, a few examples can make most of a difference, and Student's t is not reliable


class ComparisonVerdict(NamedTuple):
    """A verdict on two recipes, or on two runs of one recipe."""

    is_different: bool  # Whether the difference is larger than differences between other seeds and other examples
    words: str  # "better", "worse", or for a metric that is neither good nor bad "higher", "lower"; NO_CLEAR_DIFFERENCE
    reason: str | None  # Why, or what limits the verdict; None if there is nothing to add

    @property
    def in_full(self) -> str:
        """The words with the reason in parentheses."""
        return self.words if self.reason is None else f"{self.words} ({self.reason})"


def verdict_of(
    found: Difference,
    *,
    lower_is_better: bool | None,
    adjusted_p: float | None = None,
    num_comparisons: int = 1,
    num_others: int | None = None,
) -> ComparisonVerdict:
    """Return whether the first of two recipes is better than the second.

    There is a difference if at least 20 examples and at least 2 seeds were compared and the 95% interval excludes 0.
    The interval and the words depend on the compared runs only, so every report gives the same words for the same runs.
    If the difference does not remain after Holm's correction for the other comparisons of a table, the reason says so.

    Args:
        lower_is_better: Direction of the metric; None if it is neither good nor bad.
        adjusted_p: p-value after Holm's correction over the table; None: the only comparison.
        num_comparisons: Number of comparisons that Holm's correction is over.
        num_others: If the two are runs of one recipe, the number of its other runs, whose scatter gives the interval.
            None: the two are different recipes.
    """
    if lower_is_better is None:
        side = "lower" if found.mean < 0 else "higher"
    else:
        side = "better" if (found.mean < 0) == lower_is_better else "worse"
    excludes_0 = found.p < ALPHA
    by = f"by the scatter of {counted(num_others, 'other run')} of the recipe" if num_others is not None else None
    if found.num_examples < FEWEST_EXAMPLES:
        by = f"{counted(found.num_examples, 'example')}, at least {FEWEST_EXAMPLES} are needed"
    elif num_others is not None and num_others < 2:
        by = "two runs of one recipe; at least 2 other seeds are needed to compare with"
    elif num_others is None and len(found.of_seeds) == 1:
        on_these = f"{side} on these examples" if excludes_0 else "no clear difference on these examples either"
        by = f"one seed: {on_these}; at least 2 seeds are needed to compare recipes"
    elif excludes_0:
        reasons = [by]
        if adjusted_p is not None and not adjusted_p < ALPHA:
            reasons.append(f"but not after Holm's correction over {counted(num_comparisons, 'comparison')}")
        agreeing = sum((difference < 0) == (found.mean < 0) for difference in found.of_seeds)
        if agreeing < len(found.of_seeds):
            reasons.append(f"under {agreeing} of {len(found.of_seeds)} seeds")
        return ComparisonVerdict(True, side, "; ".join(filter(None, reasons)) or None)
    return ComparisonVerdict(False, NO_CLEAR_DIFFERENCE, by)


def corrected_verdicts(found: Sequence[tuple[Difference, bool]]) -> list[ComparisonVerdict]:
    """Return the verdict on each difference of a table, with Holm's correction over all of them.

    Args:
        found: Each difference, and whether lower values are better.
    """
    p_values = [difference.p for difference, _ in found]
    number = sum(not math.isnan(p) for p in p_values)
    return [
        verdict_of(difference, lower_is_better=lower_is_better, adjusted_p=p, num_comparisons=number)
        for (difference, lower_is_better), p in zip(found, holm(p_values), strict=True)
    ]


def margin_verdicts(
    found: Sequence[Difference], margin: float, num_claims: int | None = None
) -> list[ComparisonVerdict]:
    """Return the verdict on each claim that a difference is below 0 by a margin, with Holm's correction over them.

    A claim is *supported* if the 95% interval is wholly below 0 and the mean is at most -margin; *negligible* if the
    interval is inside (-margin, margin); *not supported* if the lower end of the interval is above -margin; otherwise
    it is *undecided*. Each of the first three rests on a test whose p-value is below 0.05 if and only if the interval
    excludes a value: 0, both -margin and margin, or -margin. The p-values of all claims are corrected for their number,
    separately for each of the three. If a condition holds only without the correction, the next one that holds with it
    is the verdict, and without any the claim is undecided. *Supported* says that the loss is lower and that the
    estimate, not its interval, reaches the margin.

    Args:
        found: Differences in the unit of the margin; lower is better.
        margin: Smallest difference that matters, above 0.
        num_claims: Number of claims that the correction is for, also those that are not known yet, whose p-values count
            as 1. None: those of `found`.
    """
    unknown = [1.0] * ((num_claims or len(found)) - len(found))
    tests = [
        [difference.p for difference in found],
        [max(difference.p_against(-margin), difference.p_against(margin)) for difference in found],
        [difference.p_against(-margin) for difference in found],
    ]
    corrected = zip(*(zip(p_values, holm([*p_values, *unknown]), strict=False) for p_values in tests), strict=True)
    return [_margin_verdict(*each, margin=margin) for each in zip(found, corrected, strict=True)]


def _margin_verdict(found: Difference, p_values: Sequence[tuple[float, float]], *, margin: float) -> ComparisonVerdict:
    """Return the verdict on a claim, given the p-value of each test without and with the correction."""
    if found.num_examples < FEWEST_EXAMPLES or len(found.of_seeds) < 2:
        needed = f"at least {FEWEST_EXAMPLES} examples and 2 seeds are needed"
        return ComparisonVerdict(False, UNDECIDED, needed)
    applies = {
        SUPPORTED: found.mean <= -margin,
        NEGLIGIBLE: -margin < found.mean < margin,
        NOT_SUPPORTED: found.mean > -margin,
    }
    tested = [(words, *p) for (words, is_so), p in zip(applies.items(), p_values, strict=True) if is_so]
    if words := next((words for words, _, adjusted in tested if adjusted < ALPHA), None):
        harmful = "higher by more than the margin" if words == NOT_SUPPORTED and found.low > margin else None
        return ComparisonVerdict(words == SUPPORTED, words, harmful)
    by_interval = next((words for words, p, _ in tested if p < ALPHA), None)
    lost = None if by_interval is None else f"{by_interval} by its own interval, but not after Holm's correction"
    return ComparisonVerdict(False, UNDECIDED, lost)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction (Holm 1979, Scandinavian Journal of Statistics 6, 65).

    If no recipe differs, at most 5% of tables have an adjusted p-value of at most 0.05. The k-th smallest of m p-values
    is multiplied by m - k + 1 and is not below its predecessors. A nan is not a test: it stays nan and does not count.
    """
    order = sorted((k for k, p in enumerate(p_values) if not math.isnan(p)), key=lambda k: p_values[k])
    adjusted, least = list(p_values), 0.0
    for rank, k in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[k]))
        adjusted[k] = least
    return adjusted
