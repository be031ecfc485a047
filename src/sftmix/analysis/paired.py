"""The paired difference of two recipes over seeds and examples, with its interval and p-values."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05
SMALLEST_P = 1e-100  # Smaller p-values are reported as 0: quantiles of Student's t lose their digits
RESAMPLES = 65_536  # All signs of 16 pairs


class _Part(NamedTuple):
    """An independent part of the error of a mean: its estimated variance, and the degrees of freedom of that."""

    variance: float
    degrees: int


class Difference(NamedTuple):
    """How much higher one recipe is than another, both under the same seeds and over the same examples."""

    mean: float  # Mean over seeds and examples, in the unit of the metric; below 0 if the first recipe is lower
    low: float  # Lower end of the 95% interval; nan if there is only one example
    high: float  # Upper end of the 95% interval
    p: float  # Two-sided p-value; p < 0.05 if and only if the interval excludes 0; nan without an interval
    num_examples: int  # Number of examples that both recipes have
    of_seeds: list[float]  # Difference under each seed. With one seed, the interval and p are over examples only
    p_examples: float = math.nan  # p-value of the mean over these seeds for other examples: paired Student's t
    errors: tuple[tuple[_Part, ...], ...] = ()  # Parts of the error over seeds and examples, and over examples only

    def p_against(self, value: float) -> float:
        """Return the two-sided p-value of a true mean `value`; below 0.05 if and only if the interval excludes it."""
        return max((_p_value(self.mean - value, parts) for parts in self.errors), default=math.nan)


def hierarchical_difference(differences: ArrayLike, weights: ArrayLike | None = None) -> Difference:
    """Return the mean paired difference with an interval that holds for other seeds and other examples.

    Model: seeds and examples are crossed random effects, d[s, e] = mu + A_s + B_e + R_se with variances v_A, v_B and
    v_R, over n seeds and m examples. The grand mean has the variance

        V = v_A / n + v_B / m + v_R / (n m).

    The mean squares of the two-way table,

        MS_A = m sum_s (d[s, .] - d[., .])^2 / (n - 1)                                 E = m v_A + v_R
        MS_B = n sum_e (d[., e] - d[., .])^2 / (m - 1)                                 E = n v_B + v_R
        MS_R = sum_se (d[s, e] - d[s, .] - d[., e] + d[., .])^2 / ((n - 1) (m - 1))    E = v_R

    give the unbiased estimate V = (MS_A + MS_B - MS_R) / (n m) (Searle, Casella and McCulloch 1992, Variance
    Components, chapter 4; with clusters instead of a balanced table: Cameron, Gelbach and Miller 2011, Journal of
    Business and Economic Statistics 29, 238). MS_A / (n m), the variance of the seed means over n, contains v_R / (n m)
    already, so only the examples' own part (MS_B - MS_R) / (n m) may be added. A bootstrap over seeds and examples adds
    MS_B / (n m) and counts v_R twice (Owen 2007, Annals of Applied Statistics 1, 386: the bootstrap is conservative).

    The two parts have very different degrees of freedom, n - 1 and m - 1. Howe's formula (1974, Journal of the American
    Statistical Association 69, 789; called MOVER in later work) joins their quantiles,

        h(p)^2 = t(n - 1, p)^2 MS_A / (n m) + t(m - 1, p)^2 max(0, MS_B - MS_R) / (n m),

    which is Student's exact interval if one of the two parts is 0. Satterthwaite's degrees of freedom are not used:
    with 2 seeds that dominate, they give a coverage of 88% instead of 95%.
    The interval is mean +- h(0.05), but never narrower than Student's interval over examples only,
    t(m - 1, p) sqrt(MS_B / (n m)): if two seeds agree by chance, MS_A is near 0. p is the root of h(p) = |mean|.

    Coverage and width: `benchmarks/intervals.py`, recorded under `experiments/`.

    Args:
        differences: Difference of each seed and example, `[seeds, examples]`. If `weights` are given, sums over tokens.
        weights: Tokens of each example. If given, the difference is a ratio of sums, per token, and its error is that
            of the linearized ratio (Cochran 1977, Sampling Techniques, section 6.3). None: a mean over examples.
    """
    by_seed = np.asarray(differences, dtype=np.float64)
    num_seeds, num_examples = by_seed.shape
    tokens = np.ones(num_examples) if weights is None else np.asarray(weights, dtype=np.float64)
    if num_seeds < 1 or tokens.shape != (num_examples,):
        raise ValueError(
            f"{num_seeds} seeds, {len(tokens)} weights of {num_examples} examples: expected a seed, and a weight each"
        )
    of_seeds = by_seed.sum(axis=1) / tokens.sum()
    examples = _part_of_examples(by_seed.mean(axis=0), tokens)
    if num_seeds == 1:
        return _difference(of_seeds, num_examples, [examples], examples)
    seeds = _Part(float(of_seeds.var(ddof=1)) / num_seeds, num_seeds - 1)
    rest = _variance_of_rest(by_seed, tokens)
    own = _Part(max(0.0, examples.variance - rest), num_examples - 1)
    return _difference(of_seeds, num_examples, [seeds, own], examples)


def difference_of_seeds(values: ArrayLike, weights: ArrayLike | None = None) -> Difference:
    """Return the difference of two runs of one recipe, with an interval that holds for other pairs of its seeds.

    In the model of `hierarchical_difference` the difference of two runs of one recipe has the variance
    2 (v_A + v_R / m): the examples' own part cancels. The variance of the means of the k other runs of the recipe
    estimates v_A + v_R / m with k - 1 degrees of freedom, so the interval is Student's. The two runs themselves do not
    enter the estimate: an outlier would hide itself. As in `hierarchical_difference`, the interval is never narrower
    than Student's interval over examples only.

    Args:
        values: Metric of each run and example, `[runs, examples]`. The first two runs are compared; there are at least
            two others.
        weights: Tokens of each example, as in `hierarchical_difference`.
    """
    by_run = np.asarray(values, dtype=np.float64)
    num_runs, num_examples = by_run.shape
    tokens = np.ones(num_examples) if weights is None else np.asarray(weights, dtype=np.float64)
    if num_runs < 4:
        raise ValueError(f"{num_runs} runs, expected two to compare and at least two others")
    of_runs = by_run.sum(axis=1) / tokens.sum()
    seeds = _Part(2 * float(of_runs[2:].var(ddof=1)), num_runs - 3)
    examples = _part_of_examples(by_run[0] - by_run[1], tokens)
    return _difference(of_runs[:1] - of_runs[1:2], num_examples, [seeds], examples)


def _part_of_examples(sums: NDArray[np.float64], tokens: NDArray[np.float64]) -> _Part:
    """Return the variance of a ratio of sums for other examples, MS_B / (n m)."""
    number = len(sums)
    if number < 2:
        return _Part(math.nan, 0)
    residuals = sums - sums.sum() / tokens.sum() * tokens
    return _Part(float((residuals**2).sum()) * number / (number - 1) / float(tokens.sum()) ** 2, number - 1)


def _variance_of_rest(by_seed: NDArray[np.float64], tokens: NDArray[np.float64]) -> float:
    """Return MS_R / (n m): the part of the variance of the mean that neither seeds nor examples explain."""
    num_seeds, num_examples = by_seed.shape
    if num_examples < 2:
        return math.nan
    of_seeds = by_seed.sum(axis=1) / tokens.sum()
    rest = by_seed - by_seed.mean(axis=0) - np.outer(of_seeds - of_seeds.mean(), tokens)
    scale = num_examples / ((num_seeds - 1) * (num_examples - 1) * num_seeds * float(tokens.sum()) ** 2)
    return float((rest**2).sum()) * scale


def _difference(
    of_seeds: NDArray[np.float64], num_examples: int, parts: Sequence[_Part], examples: _Part
) -> Difference:
    """Return the mean of the seeds with the wider of two intervals: over seeds and examples, over examples only."""
    mean = float(of_seeds.mean())
    if num_examples < 2:
        return Difference(mean, math.nan, math.nan, math.nan, num_examples, of_seeds.tolist())
    errors = tuple(parts), (examples,)
    half = max(_half_width(own, ALPHA) for own in errors)
    p_examples = _p_value(mean, [examples])
    p = max(_p_value(mean, parts), p_examples)
    return Difference(mean, mean - half, mean + half, p, num_examples, of_seeds.tolist(), p_examples, errors)


def _half_width(parts: Sequence[_Part], p: float) -> float:
    """Return h(p), half the width of the interval that leaves out p."""
    from scipy.special import stdtrit

    return math.hypot(*(float(stdtrit(part.degrees, p / 2)) * math.sqrt(part.variance) for part in parts))


def _p_value(mean: float, parts: Sequence[_Part]) -> float:
    """Return the p with h(p) = |mean|."""
    from scipy.optimize import brentq

    if mean == 0:
        return 1.0
    if _half_width(parts, SMALLEST_P) <= abs(mean):
        return 0.0
    root = brentq(lambda log_p: _half_width(parts, math.exp(log_p)) - abs(mean), math.log(SMALLEST_P), 0.0, xtol=1e-10)
    return math.exp(root)


def sign_flip_p(differences: ArrayLike) -> float:
    """Return the two-sided p-value of paired differences under random signs.

    All 2^n signs are counted if there are at most `RESAMPLES` of them, so p is exact up to 16 pairs. For more pairs,
    signs are drawn, and p is at least 2 / (RESAMPLES + 1). This p is shown beside the p-value of the interval and is
    never corrected for the number of comparisons: Holm's correction uses the p-value of the interval, which has no
    such bound.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not values.any():
        return 1.0
    draws = {"n_resamples": RESAMPLES, "batch": 4_096, "rng": np.random.default_rng(0)}
    return float(permutation_test((values,), np.mean, permutation_type="samples", vectorized=True, **draws).pvalue)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the standard deviation (n - 1), which is None if there is one value."""
    return statistics.fmean(values), float(np.std(values, ddof=1)) if len(values) > 1 else None
