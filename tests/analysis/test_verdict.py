"""The verdict: a planted difference is found, and seed against seed is not."""

import math

import numpy as np
import pytest

from sftmix.analysis.paired import Difference, hierarchical_difference
from sftmix.analysis.verdict import holm, margin_verdicts, verdict_of

# As was measured on a tiny model: between seeds of one recipe the loss has a standard deviation of 0.005 nats per token
SEED_SD, EFFECT, NUM_EXAMPLES = 0.0054, 0.1, 300


@pytest.fixture
def run():
    """A function that gives the losses of a run: of its recipe, its seed and the examples."""
    rng = np.random.default_rng(0)
    examples = rng.gamma(4.0, 0.5, NUM_EXAMPLES)

    def losses(effect=0.0):
        return examples + effect + rng.normal(0, SEED_SD) + rng.normal(0, 0.02, NUM_EXAMPLES)

    return losses


def test_a_planted_difference_is_found(run):
    found = hierarchical_difference([run(EFFECT) - run() for _ in range(3)])
    assert found.low < EFFECT < found.high
    assert verdict_of(found, lower_is_better=True) == (True, "worse", None)
    assert verdict_of(found, lower_is_better=False) == (True, "better", None)
    assert verdict_of(found, lower_is_better=None) == (True, "higher", None)


def test_seeds_of_one_recipe_against_others_have_no_clear_difference(run):
    """20 times seeds 0, 1, 2 against seeds 3, 4, 5 of one recipe, and as often with 5 seeds each."""
    for number in (3, 5):
        found = [hierarchical_difference([run() - run() for _ in range(number)]) for _ in range(20)]
        assert sum(verdict_of(f, lower_is_better=True).is_different for f in found) <= 2


def test_a_seed_against_a_seed_has_never_a_clear_difference(run):
    """Over examples only nearly all of them would have: the verdict says that one seed is not enough."""
    found = [hierarchical_difference([run() - run()]) for _ in range(20)]
    assert sum(f.p < 0.05 for f in found) > 10
    verdicts = [verdict_of(f, lower_is_better=True) for f in found]
    assert not any(v.is_different for v in verdicts)
    assert all("at least 2 seeds are needed to compare recipes" in str(v.reason) for v in verdicts)


def of(mean, p, of_seeds, num_examples=100):
    return Difference(mean, mean - 1, mean + 1, p, num_examples, of_seeds)


@pytest.mark.parametrize(
    ("found", "adjusted", "words", "reason"),
    [
        (of(-0.2, 0.01, [-0.2, -0.2]), 0.03, "better", None),
        (of(0.2, 0.01, [0.2, 0.2]), None, "worse", None),
        (of(-0.2, 0.01, [-0.5, 0.1, -0.2]), 0.03, "better", "under 2 of 3 seeds"),
        (of(-0.2, 0.01, [-0.2, -0.2]), 0.06, "better", "but not after Holm's correction over 6 comparisons"),
        (of(-0.2, 0.01, [-0.2, -0.2]), 0.05, "better", "but not after Holm's correction over 6 comparisons"),
        (of(-0.2, 0.05, [-0.2, -0.2]), 0.05, "no clear difference", None),
        (of(-0.2, 0.2, [-0.2, -0.2]), 0.4, "no clear difference", None),
        (of(0.2, 0.01, [0.2]), 0.02, "no clear difference", "one seed: worse on these examples; at least 2 seeds"),
        (
            of(0.2, 0.3, [0.2]),
            0.3,
            "no clear difference",
            "one seed: no clear difference on these examples either; at least 2",
        ),
        (of(0.2, 0.01, [0.2], 5), 0.01, "no clear difference", "5 examples, at least 20 are needed"),
        (of(0.2, 0.001, [0.2] * 6, 19), 0.001, "no clear difference", "19 examples, at least 20 are needed"),
        (of(0.2, 0.001, [0.2] * 6, 20), 0.001, "worse", None),
        (of(0.2, math.nan, [0.2, 0.2], 1), math.nan, "no clear difference", "1 example, at least 20 are needed"),
    ],
)
def test_the_words_follow_the_interval_and_the_seeds(found, adjusted, words, reason):
    verdict = verdict_of(found, lower_is_better=True, adjusted_p=adjusted, num_comparisons=6)
    assert verdict.words == words
    assert verdict.is_different == (words != "no clear difference")
    assert (verdict.reason or "").startswith(reason or "")
    assert (verdict.reason is None) == (reason is None)
    assert verdict.in_full.startswith(words)


@pytest.mark.parametrize(
    ("found", "adjusted", "num_others", "words", "reason"),
    [
        (of(0.2, 0.001, [0.2]), 0.001, 0, "no clear difference", "two runs of one recipe; at least 2 other seeds"),
        (of(0.2, 0.001, [0.2]), 0.001, 1, "no clear difference", "two runs of one recipe; at least 2 other seeds"),
        (of(0.2, 0.001, [0.2], 19), 0.001, 5, "no clear difference", "19 examples, at least 20 are needed"),
        (of(0.2, 0.3, [0.2]), 0.3, 2, "no clear difference", "by the scatter of 2 other runs of the recipe"),
        (of(0.2, 0.01, [0.2]), 0.06, 5, "worse", "by the scatter of 5 other runs of the recipe; but not after Holm's"),
        (of(-0.2, 0.01, [-0.2]), 0.02, 5, "better", "by the scatter of 5 other runs of the recipe"),
    ],
)
def test_two_runs_of_one_recipe_are_put_against_its_others(found, adjusted, num_others, words, reason):
    verdict = verdict_of(found, lower_is_better=True, adjusted_p=adjusted, num_others=num_others)
    assert verdict.words == words
    assert verdict.is_different == (words != "no clear difference")
    assert verdict.reason.startswith(reason)


def test_a_table_of_hundreds_of_comparisons_keeps_what_is_clear(run):
    """300 comparisons of 3 seeds, one with a planted difference: it remains after Holm's correction."""
    found = [hierarchical_difference([run() - run() for _ in range(3)]) for _ in range(299)]
    found.append(hierarchical_difference([run(1.0) - run() for _ in range(4)]))
    adjusted = holm([f.p for f in found])
    verdicts = [
        verdict_of(f, lower_is_better=True, adjusted_p=p, num_comparisons=300)
        for f, p in zip(found, adjusted, strict=True)
    ]
    assert verdicts[-1] == (True, "worse", None)
    assert sum(v.is_different and v.reason is None for v in verdicts) == 1


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


def planted(effect, noise=0.01, seeds=5):
    """Differences of five seeds and 60 examples around an effect."""
    rng = np.random.default_rng(1)
    table = rng.normal(0, noise, (seeds, 60))
    return hierarchical_difference(table - table.mean() + effect)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (planted(-0.2), "supported"),
        (planted(-0.05), "negligible"),  # lower for sure, but by less than the margin
        (planted(0.05), "negligible"),
        (planted(0.2), "not supported"),
        (planted(-0.1, noise=1.0), "undecided"),
        (planted(-0.2, seeds=1), "undecided"),
    ],
)
def test_the_verdict_by_a_margin(found, words):
    assert margin_verdicts([found], 0.1)[0].words == words


def test_the_verdict_by_a_margin_is_by_where_the_interval_lies():
    """Whatever the mean and the noise, and without other claims."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        found = hierarchical_difference(rng.normal(rng.normal(0, 0.2), 0.6, (3, 40)))
        words = "undecided"
        if found.high < 0 and found.mean <= -0.1:
            words = "supported"
        elif found.low > -0.1 and found.high < 0.1:
            words = "negligible"
        elif found.low > -0.1:
            words = "not supported"
        assert margin_verdicts([found], 0.1)[0].words == words


def test_many_claims_take_the_verdict_from_one_that_only_just_held():
    just = planted(-0.2, noise=1.6)
    assert 0.01 < just.p < 0.05
    assert margin_verdicts([just], 0.1)[0].words == "supported"
    among = margin_verdicts([just, *(planted(0.0, noise=2.0) for _ in range(9))], 0.1)[0]
    assert (among.words, among.reason) == (
        "undecided", "supported by its own interval, but not after Holm's correction"
    )  # fmt: skip
