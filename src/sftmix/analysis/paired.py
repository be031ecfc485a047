"""The paired difference of two recipes over seeds and examples, and how sure it is."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES, LEVEL = 4_000, 0.95
RESAMPLES_AT_ONCE = 100


class Difference(NamedTuple):
    """How much higher one recipe is than another, both under the same seeds and over the same examples.

    Attributes:
        mean: over seeds and examples, in the unit of the figures; below 0 where the first is lower.
        low: lower end of its 95% interval; nan where there is one example.
        high: its upper end.
        p: two-sided, of the draws that the interval is of: below 0.05 where the interval leaves 0 out; nan where there
            is no interval.
        num_examples: that both have figures of.
        of_seeds: the difference under each seed. Of one seed the interval and p are over examples alone.
    """

    mean: float
    low: float
    high: float
    p: float
    num_examples: int
    of_seeds: list[float]


def hierarchical_difference(
    differences: ArrayLike, weights: ArrayLike | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """The mean paired difference, with an interval that holds for other seeds and other examples.

    Each draw takes examples with replacement, and adds to the difference of the drawn ones an error of the seeds: their
    standard error times a draw of Student's t with one degree of freedom less than there are seeds. Drawing 2 to 6
    seeds with replacement, as the plain hierarchical bootstrap does, gives intervals that are too narrow: where recipes
    do not differ but seeds do, it finds an effect in 39% of cases with 2 seeds, 26% with 3 and 14% with 5. This one
    finds it in 3%, 3% and 5% (600 simulated comparisons each, over 60 examples; the tests repeat it).

    The scatter of the seeds is not taken below what the examples' own scatter gives it: two seeds that happen to agree
    are no certainty. Under one seed it is the percentile bootstrap over examples, and says nothing of other seeds.

    Args:
        differences: of each seed and example, `[seeds, examples]`; sums over its tokens where there are weights.
        weights: tokens of each example: the difference is then a ratio of sums, per token. None: a mean over examples.
        resamples: draws.
        seed: of the draws.
    """
    by_seed = np.asarray(differences, dtype=np.float64)
    num_seeds, num_examples = by_seed.shape
    tokens = np.ones(num_examples) if weights is None else np.asarray(weights, dtype=np.float64)
    assert num_seeds > 0
    assert tokens.shape == (num_examples,)
    of_seeds = by_seed.sum(axis=1) / tokens.sum()
    mean = float(of_seeds.mean())
    if num_examples < 2:
        return Difference(mean, math.nan, math.nan, math.nan, num_examples, of_seeds.tolist())
    generator = np.random.default_rng(seed)
    draws = _draws_of_examples(by_seed.mean(axis=0), tokens, resamples, generator)
    if num_seeds > 1:
        draws += standard_error_of_seeds(by_seed, tokens) * generator.standard_t(num_seeds - 1, size=len(draws))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(draws) + 1))
    return Difference(mean, float(low), float(high), p, num_examples, of_seeds.tolist())


def standard_error_of_seeds(by_seed: NDArray[np.float64], tokens: NDArray[np.float64]) -> float:
    """Standard error of the mean over at least two seeds, for new seeds and the same examples."""
    num_seeds, num_examples = by_seed.shape
    of_seeds = by_seed.sum(axis=1) / tokens.sum()
    seen = of_seeds.var(ddof=1)
    # What is left of each figure when its seed's and its example's own part are taken out
    rest = by_seed - by_seed.mean(axis=0) - np.outer(of_seeds - of_seeds.mean(), tokens)
    scatter = (rest**2).sum() / (num_seeds - 1) * num_examples / (num_examples - 1) / tokens.sum() ** 2
    return math.sqrt(max(seen, scatter) / num_seeds)


def _draws_of_examples(
    sums: NDArray[np.float64], tokens: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Ratios of sums over examples drawn with replacement."""
    drawn = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        of_draw = generator.integers(len(sums), size=(min(RESAMPLES_AT_ONCE, resamples - start), len(sums)))
        drawn.append(sums[of_draw].sum(axis=1) / tokens[of_draw].sum(axis=1))
    return np.concatenate(drawn)
