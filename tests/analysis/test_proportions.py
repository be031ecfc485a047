"""Shares and their intervals against scipy."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from sftmix.analysis.proportions import percentile_interval, proportion


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 7), (7, 7), (400, 1000), (1, 1)])
def test_a_share_has_wilsons_interval(successes, n):
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    found = proportion(successes, n)
    assert found.value == successes / n
    assert found[1:3] == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_of_nothing_is_not_a_number():
    assert math.isnan(proportion(0, 0).value)


def test_a_bootstrap_interval_is_the_middle_of_its_draws():
    assert percentile_interval(5.0, np.arange(1001) / 100, 9)[1:] == pytest.approx((0.25, 9.75, 9))
