"""What may be said of a difference."""

from typing import NamedTuple

from sftmix.analysis.paired import LEVEL, Difference
from sftmix.terminal import counted

# Where few examples make most of the difference (what each brings is exponential) and recipes do not differ, they are
# told apart in up to 14% of cases over 5 examples, 13% over 10 and 9% over 20 (seed sd 0.05, 2 to 6 seeds, 400 cases)
FEWEST_EXAMPLES = 20


class Verdict(NamedTuple):
    """A verdict on two recipes.

    Attributes:
        is_different: whether they are told apart: what was seen holds for other seeds and other examples.
        words: in short.
        reason: why, or None where the words say all.
    """

    is_different: bool
    words: str
    reason: str | None


def verdict_of(found: Difference, adjusted_p: float) -> Verdict:
    """Whether two recipes differ.

    They do where there are at least two seeds and the p of the interval over seeds and examples is at most 0.05 after
    Holm's correction. One seed can say at most that two models differ over these examples. Few examples say nothing,
    under any number of seeds.

    Args:
        found: the difference with its p.
        adjusted_p: that p after Holm's correction over the table.
    """
    alpha, seeds = 1 - LEVEL, len(found.of_seeds)
    side = "lower" if found.mean < 0 else "higher"
    if found.num_examples < FEWEST_EXAMPLES:
        few = counted(found.num_examples, "example")
        return Verdict(False, "cannot be told", f"{few}, at least {FEWEST_EXAMPLES} are needed")
    if seeds == 1:
        reason = "one seed cannot tell a recipe from a seed"
        if found.p > alpha:
            return Verdict(False, "not different", f"over these examples; {reason}")
        if adjusted_p > alpha:
            return Verdict(False, "not different", f"after Holm's correction over the table; {reason}")
        return Verdict(False, "not told apart", f"{side} over these examples alone; {reason}")
    if found.p > alpha:
        return Verdict(False, "not different", None)
    if adjusted_p > alpha:
        return Verdict(False, "not different", "after Holm's correction over the table; alone it would be")
    agreeing = sum((d < 0) == (found.mean < 0) for d in found.of_seeds)
    return Verdict(True, f"different: {side}", None if agreeing == seeds else f"under {agreeing} of {seeds} seeds")
