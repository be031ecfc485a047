"""How far two splits of the same examples agree, and what a run of one split would mix under the other."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftmix.analysis.proportions import Estimate, percentile_interval

RESAMPLES = 1000
LARGEST_SHARE = 0.01  # of the examples: do a few of them decide the variance?

Values = NDArray[np.float64]
Subsets = NDArray[np.bool_]


class Agreement(NamedTuple):
    """A split beside the split that it replaces, over the examples that both have."""

    agreement: Estimate  # Share of the examples in the same subset
    rho: Estimate  # Spearman's rank correlation of the two confidences
    crossing: Estimate  # Share of the pairs of the split that cross the other's median: 0.5 by chance, at most 1
    crossing_tokens: float  # The same over mixed tokens


class Dominance(NamedTuple):
    """What decides the mean perplexity over the checkpoints."""

    checkpoints: list[float]  # Share of its variance over examples due to each checkpoint; the sum is 1
    largest: float  # Share of that variance due to the 1% of the examples that are farthest from the mean


def confident_half(confidence: Values, ids: Sequence[str]) -> Subsets:
    """Return which examples are in the confident subset: the rule of Step 1, ties in the order of the ids."""
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[_descending(confidence, ids)[: len(ids) // 2]] = True
    return chosen


def agreement(confidence: Values, reference: Values, ids: Sequence[str], num_tokens: NDArray[np.int64]) -> Agreement:
    """Return how far a split by one confidence agrees with the split by another.

    The intervals are percentiles of 1,000 bootstrap draws of examples. In each draw the examples are ranked and split
    anew.

    Args:
        num_tokens: Response tokens of each example.
    """
    one, other = confident_half(confidence, ids), confident_half(reference, ids)
    shares, rhos, crossings = _bootstrap(confidence, reference, ids)
    n = len(ids)
    crossing, by_tokens = crossing_pairs(one, other, num_tokens)
    return Agreement(
        percentile_interval(float((one == other).mean()), shares, n),
        percentile_interval(spearman(confidence, reference), rhos, n),
        percentile_interval(crossing, crossings, n),
        by_tokens,
    )


def spearman(one: Values, other: Values) -> float:
    """Return Spearman's rank correlation, with mean ranks for ties; NaN if one side has a single value."""
    weights = np.ones(len(one))
    return _weighted_rho(_ties(one), _ties(other), weights)


def crossing_pairs(split: Subsets, reference: Subsets, num_tokens: NDArray[np.int64]) -> tuple[float, float]:
    """Return the expected share of a split's random pairs that cross the reference's median: by pairs, and by tokens.

    If a share a of both subsets is on the same side, it is a^2 + (1 - a)^2. A pair has min(N_c, N_u) mixed tokens, the
    weight of a pair in the second share.
    """
    c, u = num_tokens[split], num_tokens[~split]
    here, there = reference[split], reference[~split]
    crossing = here.mean() * (~there).mean() + (~here).mean() * there.mean()
    mixed = mixed_tokens(c[here], u[~there]) + mixed_tokens(c[~here], u[there])
    return float(crossing), mixed / mixed_tokens(c, u)


def share_of_mixed_tokens(split: Subsets, num_tokens: NDArray[np.int64]) -> float:
    """Return the expected share of response tokens that are mixed when the two subsets are paired at random."""
    c, u = num_tokens[split], num_tokens[~split]
    per_pair = mixed_tokens(c, u) / (len(c) * len(u))
    return 2 * min(len(c), len(u)) * per_pair / float(num_tokens.sum())


def mixed_tokens(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Return the sum of min(a, b) over all pairs of a length of one side and a length of the other.

    min(a, b) counts the t = 1, 2, ... that neither exceeds, so the sum is that of #{a >= t} #{b >= t} over t.
    """
    longest = int(max(one.max(initial=0), other.max(initial=0)))
    at_least = [np.cumsum(np.bincount(side, minlength=longest + 1)[::-1])[::-1][1:] for side in (one, other)]
    return float((at_least[0].astype(np.float64) * at_least[1]).sum())


def dominance(perplexity: NDArray[np.float64]) -> Dominance:
    """Return what decides the variance of the mean perplexity, over examples with finite perplexities.

    The share of checkpoint c is Cov(Perp_c / C, mean) / Var(mean).

    Args:
        perplexity: Perplexities `[example, checkpoint]`.
    """
    finite = perplexity[np.isfinite(perplexity).all(axis=1)]
    centered = finite - finite.mean(axis=0)
    mean = centered.mean(axis=1)
    variance = float((mean**2).sum())
    if not variance:
        return Dominance([np.nan] * perplexity.shape[1], np.nan)
    shares = (centered * mean[:, None]).sum(axis=0) / finite.shape[1] / variance
    squares = np.sort(mean**2)[::-1]
    return Dominance(shares.tolist(), float(squares[: max(1, round(LARGEST_SHARE * len(squares)))].sum() / variance))


def probability_confident(confidences: Sequence[Values], ids: Sequence[str]) -> Values:
    """Return the share of the confidences under which each example is in the confident subset."""
    return np.mean([confident_half(confidence, ids) for confidence in confidences], axis=0)


def _bootstrap(confidence: Values, reference: Values, ids: Sequence[str]) -> tuple[Values, Values, Values]:
    """Return draws of the share in the same subset, of Spearman's correlation, and of the share of crossing pairs.

    A draw is a weight of each example. Orders and ties are found once; a draw only sums weights.
    """
    orders = _descending(confidence, ids), _descending(reference, ids)
    ties = _ties(confidence), _ties(reference)
    n, generator = len(ids), np.random.default_rng(0)
    shares, rhos, crossings = np.empty(RESAMPLES), np.empty(RESAMPLES), np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        weights = np.bincount(generator.integers(n, size=n), minlength=n).astype(np.float64)
        inside = [np.empty(n), np.empty(n)]  # copies of each example in the confident half of the draw
        for part, order in zip(inside, orders, strict=True):
            before = np.cumsum(weights[order]) - weights[order]
            part[order] = np.clip(n // 2 - before, 0, weights[order])
        both = np.minimum(*inside).sum()
        neither = np.minimum(weights - inside[0], weights - inside[1]).sum()
        here, there = both / (n // 2), neither / (n - n // 2)
        shares[k] = (both + neither) / n
        crossings[k] = here * there + (1 - here) * (1 - there)
        rhos[k] = _weighted_rho(*ties, weights)
    return shares, rhos[np.isfinite(rhos)] if np.isfinite(rhos).any() else np.array([np.nan]), crossings


def _descending(values: Values, ids: Sequence[str]) -> NDArray[np.int64]:
    return np.lexsort((np.asarray(ids), -values))


def _ties(values: Values) -> NDArray[np.int64]:
    return np.unique(values, return_inverse=True)[1]


def _weighted_rho(one: NDArray[np.int64], other: NDArray[np.int64], weights: Values) -> float:
    ranks = []
    for ties in (one, other):
        count = np.bincount(ties, weights)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[ties])
    total = weights.sum()
    x, y = (rank - (weights * rank).sum() / total for rank in ranks)
    scale = np.sqrt((weights * x * x).sum() * (weights * y * y).sum())
    return float((weights * x * y).sum() / scale) if scale > 0 else float("nan")
