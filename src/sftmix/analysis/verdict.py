"""The verdict on a difference: better, worse, or no clear difference. Every report uses this one rule."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sftmix.analysis.paired import ALPHA, Difference
from sftmix.terminal import counted

NO_CLEAR_DIFFERENCE = "no clear difference"
# Below this number a few examples can make most of a difference, and Student's t is not reliable
FEWEST_EXAMPLES = 20


class Verdict(NamedTuple):
    """A verdict on two recipes, or on two runs of one recipe.

    Attributes:
        is_different: Whether the difference is more than other seeds and other examples would give.
        words: "better", "worse" or "no clear difference" of the first against the second; "higher" or "lower" for a
            metric that is neither good nor bad.
        reason: Why, or what limits the verdict; None if there is nothing to add.
    """

    is_different: bool
    words: str
    reason: str | None

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
) -> Verdict:
    """Return whether the first of two recipes is better than the second.

    There is a difference if at least 20 examples and at least 2 seeds were compared and the 95% interval excludes 0.
    The interval and the words depend on the compared runs only, so every report gives the same words for the same runs.
    If the difference does not remain after Holm's correction for the other comparisons of a table, the reason says so.

    Args:
        found: The difference.
        lower_is_better: Direction of the metric; None if it is neither good nor bad.
        adjusted_p: p-value after Holm's correction over the table; None: the only comparison.
        num_comparisons: Number of comparisons that Holm's correction is over.
        num_others: If the two are runs of one recipe, the number of its other runs, whose scatter gives the interval.
            None: the two are different recipes.
    """
    side = _side(found.mean, lower_is_better)
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
        return Verdict(True, side, "; ".join(filter(None, reasons)) or None)
    return Verdict(False, NO_CLEAR_DIFFERENCE, by)


def _side(mean: float, lower_is_better: bool | None) -> str:
    if lower_is_better is None:
        return "lower" if mean < 0 else "higher"
    return "better" if (mean < 0) == lower_is_better else "worse"


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction (Holm 1979, Scandinavian Journal of Statistics 6, 65).

    Adjusted p-values of at most 0.05 are, all together, wrong in at most 5% of tables. The k-th
    smallest of m is multiplied by m - k + 1 and is not below its predecessors. A nan is not a test: it stays nan and
    does not count.
    """
    order = sorted((k for k, p in enumerate(p_values) if not math.isnan(p)), key=lambda k: p_values[k])
    adjusted, least = list(p_values), 0.0
    for rank, k in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[k]))
        adjusted[k] = least
    return adjusted
