"""Overlap and Kolmogorov-Smirnov of two groups, against closed forms and scipy."""

import numpy as np
import pytest
from scipy.stats import gaussian_kde, ks_2samp, norm

from sftmix.analysis.distributions import compare_groups, densities


@pytest.mark.parametrize("distance", [0.0, 1.0, 3.0])
def test_the_overlap_of_two_normals_is_the_closed_form(distance):
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=4000), generator.normal(distance, size=4000)
    found = compare_groups(one, other)
    assert found.overlap.value == pytest.approx(2 * norm.cdf(-distance / 2), abs=0.03)
    assert found.overlap.low <= found.overlap.value <= found.overlap.high or distance == 0.0
    assert found.ks == ks_2samp(one, other).statistic


def test_the_density_is_the_kernel_density_of_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=500)
    found = densities([values, values + 1])
    expected = gaussian_kde(values, bw_method="scott")(found.grid)
    assert found.densities[0] == pytest.approx(expected, abs=2e-3)
    step = found.grid[1] - found.grid[0]
    assert found.densities[0].sum() * step == pytest.approx(1.0, abs=1e-3)


def test_infinite_values_enter_only_kolmogorov_smirnov():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=100), generator.normal(size=100)
    without = compare_groups(one, other)
    found = compare_groups(np.append(one, [-np.inf] * 50), other)
    assert found.overlap.value == without.overlap.value
    assert found.ks > without.ks


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0]])
def test_a_group_without_a_spread_has_no_density(values):
    with pytest.raises(ValueError, match="expected at least two different ones"):
        densities([np.array(values), np.arange(9.0)])
