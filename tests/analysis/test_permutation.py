"""Sign-flip tests beside all signs counted by hand."""

from itertools import product

import numpy as np
import pytest

from sftmix.analysis.permutation import sign_flip_p


def by_hand(values):
    """The share of all signs under which the mean is as far from 0 as the one seen."""
    seen = abs(sum(values))
    flipped = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=len(values))
    ]
    return sum(f >= seen - 1e-12 for f in flipped) / len(flipped)


@pytest.mark.parametrize(
    "values", [[1.0, 2.0, 3.0], [0.4, -0.1, 0.3, 0.2, 0.9], [0.1, 0.2, -0.3, 0.25, 0.6, -0.05, 0.7]]
)
def test_few_pairs_are_counted_exactly(values):
    assert sign_flip_p(values) == pytest.approx(by_hand(values))
    assert sign_flip_p([-v for v in values]) == pytest.approx(by_hand(values))


@pytest.mark.parametrize("number", [1, 2, 3, 6, 16])
def test_pairs_that_agree_reach_the_floor(number):
    assert sign_flip_p([0.1 * k for k in range(1, number + 1)]) == pytest.approx(min(1.0, 2.0 ** (1 - number)))


def test_many_pairs_are_drawn_and_agree_with_the_t_test():
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(0).normal(0.12, 1.0, 300)
    assert sign_flip_p(values) == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.015)
    assert sign_flip_p(values) == sign_flip_p(values), "the draws are seeded"


def test_nothing_differs():
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
