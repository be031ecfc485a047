"""Agreement of splits and what they mix: hand-computed cases, brute force, scipy, and the rule of the program."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from sftmix.analysis.stability import (
    agreement,
    confident_half,
    crossing_pairs,
    dominance,
    mixed_tokens,
    probability_confident,
    share_of_mixed_tokens,
    spearman,
)
from sftmix.functional.confidence import split_by_confidence


def test_the_split_is_that_of_the_program():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 3, size=41).astype(float)  # the median is shared
    values[:3] = -np.inf
    ids = [f"{k:03d}" for k in generator.permutation(41)]
    assert confident_half(values, ids).tolist() == split_by_confidence(torch.tensor(values), ids).tolist()


def test_spearman_is_that_of_scipy_with_ties():
    generator = np.random.default_rng(0)
    one = generator.integers(0, 5, size=60).astype(float)
    other = one + generator.normal(size=60).round()
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))


@pytest.mark.parametrize("agreeing", [0.5, 0.75, 1.0])
def test_the_share_of_crossing_pairs_of_equal_halves(agreeing):
    n = 80
    reference = np.arange(n) < n // 2
    split = reference.copy()
    moved = round((1 - agreeing) * n / 2)
    split[:moved], split[n // 2 : n // 2 + moved] = False, True
    by_pairs, by_tokens = crossing_pairs(split, reference, np.full(n, 7))
    assert by_pairs == pytest.approx(agreeing**2 + (1 - agreeing) ** 2)
    assert by_tokens == pytest.approx(by_pairs)  # all lengths are equal


def test_shares_by_tokens_are_those_of_all_pairs():
    generator = np.random.default_rng(0)
    num_tokens = generator.integers(1, 30, size=31)
    split, reference = generator.random(31) < 0.4, generator.random(31) < 0.5
    pairs = list(product(np.flatnonzero(split), np.flatnonzero(~split)))
    mixed = np.array([min(num_tokens[c], num_tokens[u]) for c, u in pairs])
    crosses = np.array([reference[c] != reference[u] for c, u in pairs])
    by_pairs, by_tokens = crossing_pairs(split, reference, num_tokens)
    assert by_pairs == pytest.approx(crosses.mean())
    assert by_tokens == pytest.approx(mixed[crosses].sum() / mixed.sum())
    num_pairs = min(split.sum(), (~split).sum())
    assert share_of_mixed_tokens(split, num_tokens) == pytest.approx(2 * num_pairs * mixed.mean() / num_tokens.sum())


def test_mixed_tokens_of_nothing_are_none():
    assert mixed_tokens(np.array([], dtype=np.int64), np.array([3, 4])) == 0
    assert mixed_tokens(np.array([1, 5]), np.array([3])) == 4


def test_a_split_agrees_with_itself():
    values = np.random.default_rng(0).normal(size=50)
    found = agreement(values, values, [f"{k:02d}" for k in range(50)], np.arange(1, 51))
    assert found.agreement[:3] == found.crossing[:3] == (1.0, 1.0, 1.0)
    assert found.rho[:3] == pytest.approx((1.0, 1.0, 1.0))
    assert found.crossing_tokens == 1.0


def test_bootstrap_intervals_cover_the_value_of_the_population():
    generator = np.random.default_rng(3)
    n, true_rho = 400, 6 / np.pi * np.arcsin(0.8 / 2)  # Spearman's correlation of a normal pair of correlation 0.8
    true_share = 1 / 2 + np.arcsin(0.8) / np.pi  # that are on the same side of both medians
    ids, covered = [f"{k:04d}" for k in range(n)], np.zeros(3)
    for _ in range(20):
        one = generator.normal(size=n)
        other = 0.8 * one + 0.6 * generator.normal(size=n)
        found = agreement(one, other, ids, np.ones(n, dtype=np.int64))
        covered += [
            found.rho.low <= true_rho <= found.rho.high,
            found.agreement.low <= true_share <= found.agreement.high,
            found.crossing.low <= true_share**2 + (1 - true_share) ** 2 <= found.crossing.high,
        ]
    assert (covered >= 16).all()


def test_equal_confidences_have_no_rank_correlation():
    found = agreement(np.ones(6), np.arange(6.0), list("abcdef"), np.ones(6, dtype=np.int64))
    assert np.isnan(found.rho.value)
    assert found.agreement.value == 0.0  # ids decide: a, b, c against d, e, f


def test_the_checkpoint_that_varies_dominates():
    perplexity = np.stack([np.full(200, 3.0), np.arange(200.0)], axis=1)
    perplexity[7, 1] = np.inf
    found = dominance(perplexity)
    assert found.checkpoints == pytest.approx([0.0, 1.0])
    one_large = np.ones((200, 2))
    one_large[0] = 1000
    assert dominance(one_large).largest == pytest.approx(1.0, abs=0.01)
    assert np.isnan(dominance(np.ones((5, 2))).largest)


def test_the_probability_of_being_confident_counts_the_confidences():
    ids = ["a", "b"]
    found = probability_confident([np.array([2.0, 1.0]), np.array([0.0, 1.0]), np.array([5.0, 1.0])], ids)
    assert found == pytest.approx([2 / 3, 1 / 3])
