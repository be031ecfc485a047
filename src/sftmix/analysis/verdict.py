"""What may be said of a difference."""

from typing import NamedTuple

from sftmix.analysis.paired import LEVEL, Difference
from sftmix.terminal import counted

# Where few examples make most of the difference (what each brings is exponential) and recipes do not differ, they are
# told apart in up to 14% of cases over 5 examples, 13% over 10 and 9% over 20 (seed sd 0.05, 2 to 6 seeds, 400 cases)
FEWEST_EXAMPLES = 20


class Verdict(NamedTuple):
    """A verdict on two recipes, or on two runs of one.

    Attributes:
        is_different: whether they are told apart: what was seen is more than other seeds and other examples do.
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
    if few := _too_few(found):
        return few
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


def verdict_of_seeds(found: Difference, adjusted_p: float, num_others: int) -> Verdict:
    """Whether two runs of one recipe are further apart than its seeds are.

    Args:
        found: the difference with its p, which is over examples alone where there are fewer than two others.
        adjusted_p: that p after Holm's correction over the table.
        num_others: runs of the recipe beside the two, whose scatter the p goes by.
    """
    alpha = 1 - LEVEL
    if few := _too_few(found):
        return few
    if num_others < 2:
        return Verdict(False, "cannot be told", "one pair of seeds; interval and p are over examples alone")
    others = counted(num_others, "other run")
    if found.p > alpha:
        return Verdict(False, "not different", f"no further apart than seeds are, by {others} of the recipe")
    if adjusted_p > alpha:
        return Verdict(False, "not different", "after Holm's correction over the table; alone it would be")
    side = "lower" if found.mean < 0 else "higher"
    return Verdict(True, f"different: {side}", f"further apart than seeds are, by {others} of the recipe")


def _too_few(found: Difference) -> Verdict | None:
    if found.num_examples >= FEWEST_EXAMPLES:
        return None
    few = counted(found.num_examples, "example")
    return Verdict(False, "cannot be told", f"{few}, at least {FEWEST_EXAMPLES} are needed")
