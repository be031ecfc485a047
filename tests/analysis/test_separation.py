"""The probe, its controls and the silhouette: sets with a known separation, and scikit-learn's own functions."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sftmix.analysis.separation import (
    PENALTY,
    longer_half,
    pairs_of_equal_length,
    plane,
    probe_accuracy,
    separation,
    silhouettes,
)


def clouds(distance, number=400, dim=3, seed=0):
    """Two normal clouds of equal size with unit variance whose means are `distance` apart in one coordinate."""
    generator = np.random.default_rng(seed)
    labels = np.arange(number) % 2 == 0
    states = generator.normal(size=(number, dim))
    states[labels, 0] += distance
    return states, labels


def test_the_probe_reaches_the_best_accuracy_that_two_normal_clouds_allow():
    states, labels = clouds(2.0, number=2000)
    found = probe_accuracy(states, labels)
    assert found.low < norm.cdf(1.0) < found.high  # Bayes: the normal beyond half the distance
    assert found.n == 2000


def test_the_probe_is_that_of_scikit_learn():
    states, labels = clouds(1.0, number=120)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    assert probe_accuracy(states, labels).value == pytest.approx(
        cross_val_score(probe, states, labels, cv=folds).mean()
    )


def test_a_pair_is_never_divided_between_folds():
    # both members of a pair have the same states and opposite labels: a probe that had seen one would be wrong on the
    # other; one that has seen neither is right on exactly one of the two
    generator = np.random.default_rng(0)
    states = np.repeat(generator.normal(size=(60, 40)) * 10, 2, axis=0)
    labels = np.arange(120) % 2 == 0
    found = probe_accuracy(states, labels, units=np.repeat(np.arange(60), 2))
    assert found.value == 0.5
    assert found.n == 60
    assert probe_accuracy(states, labels).value < 0.4


def test_states_that_only_hold_the_length_do_not_separate_pairs_of_equal_length():
    generator = np.random.default_rng(0)
    num_tokens = generator.integers(1, 40, size=1000)
    is_confident = num_tokens + generator.normal(scale=8, size=1000) > 20
    states = np.stack([np.log(num_tokens), generator.normal(size=1000)], axis=1)
    found = separation(states, is_confident, num_tokens)
    assert found.probe.value > 0.75
    assert found.length_only.value == pytest.approx(found.probe.value, abs=0.03)
    assert found.matched is not None
    assert found.matched.low < 0.5 < found.matched.high
    assert found.length_split.value > 0.9
    assert 0.4 < found.shuffled[0] <= found.shuffled[1] < 0.6


def test_states_that_hold_more_than_the_length_separate_pairs_of_equal_length():
    states, labels = clouds(4.0, number=200)
    found = separation(states, labels, np.tile([3, 3, 9, 9], 50))
    assert found.num_pairs == 100
    assert found.matched is not None
    assert found.matched.low > 0.9
    assert found.matched.n == 100, "the interval counts pairs"
    assert found.length_only.low <= 0.5


def test_pairs_have_equal_lengths_and_no_example_twice():
    num_tokens = np.array([5, 5, 5, 2, 2, 7, 9])
    is_confident = np.array([True, False, False, True, True, True, False])
    pairs = pairs_of_equal_length(is_confident, num_tokens)
    assert len(pairs) == 1
    assert num_tokens[pairs[0]].tolist() == [5, 5]
    assert is_confident[pairs[0]].tolist() == [True, False]


def test_without_enough_pairs_there_is_no_matched_probe():
    states, labels = clouds(1.0, number=40)
    assert separation(states, labels, np.arange(1, 41)).matched is None


def test_too_few_examples_are_refused():
    states, labels = clouds(1.0, number=18)
    with pytest.raises(ValueError, match="9 examples of one label, expected at least 10"):
        probe_accuracy(states, labels)


def test_the_longer_half_is_longer():
    num_tokens = np.array([1, 9, 9, 9, 4, 4])
    chosen = longer_half(num_tokens)
    assert chosen.sum() == 3
    assert num_tokens[chosen].tolist() == [9, 9, 9]


def test_the_silhouette_is_the_mean_over_points_and_near_0_for_shuffled_labels():
    states, labels = clouds(6.0, number=100, dim=2)
    shuffled = np.random.default_rng(0).permutation(labels)
    own, chance = silhouettes(states, [labels, shuffled])
    assert own == pytest.approx(silhouette_samples(states, labels).mean())
    assert own > 0.5
    assert abs(chance) < 0.1


def test_the_plane_keeps_two_distant_clouds_apart():
    states, labels = clouds(30.0, number=60, dim=5)
    points = plane(states)
    assert points.shape == (60, 2)
    assert silhouettes(points, [labels])[0] > 0.4
