"""Proportions with intervals, and intervals of a statistic from its bootstrap draws."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

NORMAL_QUANTILE = 1.959963984540054  # of the two-sided 95% interval


class Estimate(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float
    n: int  # Independent units that the interval counts

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_percent(self) -> str:
        """Return the estimate of a share in percent."""
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def proportion(successes: float, n: int) -> Estimate:
    """Return a share with Wilson's score interval (1927, Journal of the American Statistical Association 22, 209).

    Args:
        successes: Number of successes. It may be a fraction if a unit counts in part.
        n: Number of independent units. The share of none is NaN.
    """
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share, z2 = float(successes) / n, NORMAL_QUANTILE**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_QUANTILE / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Estimate(share, max(0.0, center - half), min(1.0, center + half), n)


def percentile_interval(value: float, draws: ArrayLike, n: int) -> Estimate:
    """Return a statistic with the interval from the 2.5% to the 97.5% quantile of its bootstrap draws."""
    low, high = np.quantile(np.asarray(draws, dtype=np.float64), [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), n)
