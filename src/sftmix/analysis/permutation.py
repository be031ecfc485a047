"""Sign-flip test: how often random signs give a paired difference as large as the one observed."""

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 65_536  # all signs of 16 pairs


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
