"""Holm's correction, by hand."""

import math

import pytest

from sftmix.analysis.holm import holm


def test_the_smallest_is_multiplied_by_the_number_of_tests():
    """Sorted 0.01, 0.02, 0.04: times 3, 2, 1."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])


def test_none_is_below_one_that_is_smaller():
    """Sorted 0.01, 0.013, 0.014, 0.2: 0.04, 0.039 -> 0.04, 0.028 -> 0.04, 0.2."""
    assert holm([0.01, 0.013, 0.014, 0.2]) == pytest.approx([0.04, 0.04, 0.04, 0.2])


def test_none_is_above_1_and_one_test_stays():
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_what_is_no_test_does_not_count():
    adjusted = holm([math.nan, 0.01, 0.02])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.02, 0.02])
