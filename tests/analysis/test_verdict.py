"""What may be said: a planted difference is found, and seed against seed is not."""

import math

import numpy as np
import pytest

from sftmix.analysis.paired import Difference, hierarchical_difference
from sftmix.analysis.verdict import verdict_of, verdict_of_seeds

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
    assert verdict_of(found, found.p) == (True, "different: higher", None)


def test_seeds_of_one_recipe_against_others_are_not_different(run):
    """20 times seeds 0, 1, 2 against seeds 3, 4, 5 of one recipe, and as often with 5 seeds each."""
    for number in (3, 5):
        found = [hierarchical_difference([run() - run() for _ in range(number)]) for _ in range(20)]
        assert sum(verdict_of(f, f.p).is_different for f in found) <= 2


def test_a_seed_against_a_seed_is_never_different(run):
    """Over examples alone nearly all of them would be: the verdict says that one seed cannot tell."""
    found = [hierarchical_difference([run() - run()]) for _ in range(20)]
    assert sum(f.p < 0.05 for f in found) > 10
    verdicts = [verdict_of(f, f.p) for f in found]
    assert not any(v.is_different for v in verdicts)
    assert all("one seed cannot tell a recipe from a seed" in str(v.reason) for v in verdicts)


def of(mean, p, of_seeds, num_examples=100):
    return Difference(mean, mean - 1, mean + 1, p, num_examples, of_seeds)


@pytest.mark.parametrize(
    ("found", "adjusted", "words", "reason"),
    [
        (of(-0.2, 0.01, [-0.2, -0.2]), 0.03, "different: lower", None),
        (of(-0.2, 0.01, [-0.5, 0.1, -0.2]), 0.03, "different: lower", "under 2 of 3 seeds"),
        (of(-0.2, 0.01, [-0.2, -0.2]), 0.06, "not different", "after Holm's correction over the table; alone it would"),
        (of(-0.2, 0.2, [-0.2, -0.2]), 0.4, "not different", None),
        (of(0.2, 0.01, [0.2]), 0.02, "not told apart", "higher over these examples alone; one seed cannot tell"),
        (of(0.2, 0.01, [0.2]), 0.07, "not different", "after Holm's correction over the table; one seed cannot tell"),
        (of(0.2, 0.3, [0.2]), 0.3, "not different", "over these examples; one seed cannot tell"),
        (of(0.2, 0.01, [0.2], 5), 0.01, "cannot be told", "5 examples, at least 20 are needed"),
        (of(0.2, 0.001, [0.2] * 6, 19), 0.001, "cannot be told", "19 examples, at least 20 are needed"),
        (of(0.2, 0.001, [0.2] * 6, 20), 0.001, "different: higher", None),
        (of(0.2, math.nan, [0.2, 0.2], 1), math.nan, "cannot be told", "1 example, at least 20 are needed"),
    ],
)
def test_the_words_follow_the_seeds_and_the_corrected_p(found, adjusted, words, reason):
    verdict = verdict_of(found, adjusted)
    assert verdict.words == words
    assert verdict.is_different == words.startswith("different")
    assert (verdict.reason or "").startswith(reason or "")
    assert (verdict.reason is None) == (reason is None)


@pytest.mark.parametrize(
    ("found", "adjusted", "num_others", "words", "reason"),
    [
        (
            of(0.2, 0.001, [0.2]),
            0.001,
            0,
            "cannot be told",
            "one pair of seeds; interval and p are over examples alone",
        ),
        (of(0.2, 0.001, [0.2], 19), 0.001, 5, "cannot be told", "19 examples, at least 20 are needed"),
        (
            of(0.2, 0.3, [0.2]),
            0.3,
            2,
            "not different",
            "no further apart than seeds are, by 2 other runs of the recipe",
        ),
        (of(0.2, 0.01, [0.2]), 0.06, 5, "not different", "after Holm's correction over the table; alone it would be"),
        (of(-0.2, 0.01, [-0.2]), 0.02, 5, "different: lower", "further apart than seeds are, by 5 other runs of the"),
    ],
)
def test_two_runs_of_one_recipe_are_put_against_its_others(found, adjusted, num_others, words, reason):
    verdict = verdict_of_seeds(found, adjusted, num_others)
    assert verdict.words == words
    assert verdict.is_different == words.startswith("different")
    assert verdict.reason.startswith(reason)
