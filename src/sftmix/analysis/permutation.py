"""Sign-flip tests: how often chance alone gives a paired difference as large as the one that was seen."""

import math

import numpy as np
from numpy.typing import ArrayLike

from sftmix.errors import InputError

RESAMPLES = 9_999
RESAMPLES_AT_ONCE = 500


def sign_flip_p(differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of paired differences under random signs: exact where there are at most `resamples` ways.

    Over examples it says nothing of other seeds; over seeds it cannot be below `floor_of`.

    Args:
        differences: one an example, or one a seed.
        resamples: draws of signs where there are more ways.
        seed: of the draws.

    Raises:
        InputError: scipy is not installed.
    """
    try:
        from scipy.stats import permutation_test
    except ImportError:
        raise InputError("permutation tests want scipy: pip install 'sftmix[eval]'") from None
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
    """The least p that a sign-flip test of so many pairs can give, 2 / 2^n: 0.25 of three seeds."""
    return min(1.0, 2.0 ** (1 - num_pairs))


def pairs_needed(level: float) -> int:
    """The fewest pairs whose sign-flip test can give a p of at most this level: 6 seeds for 0.05."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1")
    return math.ceil(1 - math.log2(level))
