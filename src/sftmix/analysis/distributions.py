"""Compare the distributions of confidence of two groups: overlap, Kolmogorov-Smirnov, medians."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftmix.analysis.proportions import Estimate, percentile_interval

BINS = 1024
RESAMPLES = 1000
MARGIN = 4  # bandwidths beside the lowest and the highest value


class Comparison(NamedTuple):
    """Two groups of values."""

    overlap: Estimate  # Overlap coefficient, 0 (apart) to 1 (the same)
    ks: float  # Largest distance of the two distribution functions
    p: float  # Two-sided p-value of Kolmogorov-Smirnov


class Density(NamedTuple):
    """Densities of some groups on one grid."""

    grid: NDArray[np.float64]
    densities: list[NDArray[np.float64]]
    counts: list[NDArray[np.float64]]  # Values in each bin of the grid
    bandwidths: list[float]  # In bins


def densities(groups: list[NDArray[np.float64]]) -> Density:
    """Return the kernel density of each group of finite values on a common grid.

    Gaussian kernel of Scott's bandwidth, sd n^(-1/5), over values that are counted in fine bins.

    Raises:
        ValueError: If a group has fewer than two values, or only equal ones.
    """
    for values in groups:
        if len(values) < 2 or np.ptp(values) == 0:
            raise ValueError(f"{len(values)} values, expected at least two different ones")
    widths = [float(values.std(ddof=1)) * len(values) ** -0.2 for values in groups]
    margin = MARGIN * max(widths)
    low, high = min(v.min() for v in groups) - margin, max(v.max() for v in groups) + margin
    edges = np.linspace(low, high, BINS + 1)
    step = (high - low) / BINS
    counts = [np.histogram(values, edges)[0].astype(np.float64) for values in groups]
    bandwidths = [width / step for width in widths]
    smooth = [_smoothed(c, b) / (c.sum() * step) for c, b in zip(counts, bandwidths, strict=True)]
    return Density((edges[:-1] + edges[1:]) / 2, smooth, counts, bandwidths)


def compare_groups(one: NDArray[np.float64], other: NDArray[np.float64], seed: int = 0) -> Comparison:
    """Return overlap and Kolmogorov-Smirnov distance of two groups.

    The overlap coefficient is the integral of the smaller of two densities (Inman and Bradley 1989, Communications in
    Statistics 18, 3851). It is estimated from `densities`, and its interval from 1,000 bootstrap draws of each group.
    Values that are not finite do not enter the densities; they enter Kolmogorov-Smirnov by their order.
    """
    from scipy.stats import ks_2samp

    finite = [values[np.isfinite(values)] for values in (one, other)]
    found = densities(finite)
    generator = np.random.default_rng(seed)
    draws = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        drawn = [
            _smoothed(generator.multinomial(int(counts.sum()), counts / counts.sum()).astype(np.float64), bandwidth)
            for counts, bandwidth in zip(found.counts, found.bandwidths, strict=True)
        ]
        draws[k] = _shared(drawn[0], drawn[1])
    value = _shared(found.densities[0], found.densities[1])
    test = ks_2samp(one, other)
    return Comparison(
        percentile_interval(value, draws, len(one) + len(other)), float(test.statistic), float(test.pvalue)
    )


def _smoothed(counts: NDArray[np.float64], bandwidth: float) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter1d

    smooth: NDArray[np.float64] = gaussian_filter1d(counts, max(bandwidth, 1e-6), mode="constant")
    return smooth


def _shared(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.minimum(one / one.sum(), other / other.sum()).sum())
