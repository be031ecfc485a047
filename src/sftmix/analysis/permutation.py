"""Sign-flip test: how often random signs give a paired difference as large as the one observed."""

import math

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 65_536  # all signs of 16 pairs
RESAMPLES_AT_ONCE = 4_096


def sign_flip_p(differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p-value of paired differences under random signs.

    All 2^n signs are counted if there are at most `resamples` of them, so p is exact up to 16 pairs. For more pairs,
    signs are drawn, and p is at least 2 / (resamples + 1). This p is shown beside the p-value of the interval and is
    never corrected for the number of comparisons: Holm's correction uses the p-value of the interval, which has no
    such bound.

    Args:
        differences: One per seed.
        resamples: Number of draws.
        seed: Seed of the draws.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"differences have {values.ndim} dimensions, expected 1")
    if len(values) < 2 or not values.any():
        return 1.0

    def mean(flipped: np.ndarray, axis: int = -1) -> np.ndarray:
        return flipped.mean(axis=axis)

    found = permutation_test(
        (values,),
        mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=RESAMPLES_AT_ONCE,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def floor_of(num_pairs: int) -> float:
    """Return the smallest p-value of a sign-flip test of so many pairs, 2 / 2^n: 0.25 for three seeds."""
    return min(1.0, 2.0 ** (1 - num_pairs))


def pairs_needed(level: float) -> int:
    """Return the fewest pairs whose sign-flip test can give a p-value of at most `level`: 6 for 0.05."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1")
    return math.ceil(1 - math.log2(level))
