"""The interval over seeds and examples: by hand, by scipy, and how often it is wrong in simulations."""

import math

import numpy as np
import pytest

from sftmix.analysis.paired import difference_of_seeds, hierarchical_difference, standard_error_of_seeds

NUM_EXAMPLES, CASES, DRAWS = 60, 300, 800


def simulated(rng, num_seeds, num_examples=NUM_EXAMPLES, *, effect=0.0, of_seeds=0.2, of_examples=0.2, rest=0.5):
    """Paired differences of two recipes: an effect, a shift of each seed, one of each example, and the rest."""
    shape = (num_seeds, num_examples)
    shifts = rng.normal(0, of_seeds, (num_seeds, 1)) + rng.normal(0, of_examples, (1, num_examples))
    return effect + shifts + rng.normal(0, rest, shape)


def plain(by_seed, rng):
    """Ends of the usual hierarchical bootstrap: seeds and examples are both drawn with replacement."""
    num_seeds, num_examples = by_seed.shape
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=DRAWS) / num_seeds
    examples = rng.multinomial(num_examples, np.full(num_examples, 1 / num_examples), size=DRAWS) / num_examples
    return np.quantile(((seeds @ by_seed) * examples).sum(axis=1), [0.025, 0.975])


def found_in(rng, num_seeds, *shape, **effects):
    """The share of cases in which a difference is found."""
    cases = (
        hierarchical_difference(simulated(rng, num_seeds, *shape, **effects), resamples=DRAWS) for _ in range(CASES)
    )
    return sum(case.p <= 0.05 for case in cases) / CASES


@pytest.mark.parametrize("num_examples", [5, 10, 20, 60])
@pytest.mark.parametrize("num_seeds", [2, 4, 6])
def test_recipes_that_do_not_differ_are_rarely_told_apart(num_seeds, num_examples):
    """Where seeds scatter most, where examples do, and where both; 5% is promised, 8% leaves room for 300 cases."""
    rng = np.random.default_rng([num_seeds, num_examples])
    assert found_in(rng, num_seeds, num_examples) <= 0.08
    assert found_in(rng, num_seeds, num_examples, of_seeds=0.0, of_examples=1.0, rest=0.1) <= 0.08
    assert found_in(rng, num_seeds, num_examples, of_seeds=1.0, of_examples=0.0) <= 0.08


@pytest.mark.parametrize("num_examples", [5, 10, 20])
def test_few_examples_of_one_seed_are_students_interval(num_examples):
    """No seeds: 5% is promised of examples that are drawn anew."""
    assert found_in(np.random.default_rng(num_examples), 1, num_examples, of_seeds=0.0, of_examples=1.0) <= 0.08


def test_the_plain_bootstrap_would_tell_them_apart_too_often():
    rng = np.random.default_rng(0)
    cases = [plain(simulated(rng, 3, of_seeds=1.0, of_examples=0.0, rest=1.0), rng) for _ in range(CASES)]
    assert sum(low > 0 or high < 0 for low, high in cases) / CASES > 0.18


def test_over_examples_alone_a_seed_is_taken_for_a_recipe():
    """What one seed is not enough for: the shift of a seed is found as if it were an effect."""
    assert found_in(np.random.default_rng(1), 1) > 0.4


@pytest.mark.parametrize(("num_seeds", "power"), [(3, 0.7), (5, 0.98)])
def test_a_planted_difference_is_found(num_seeds, power):
    assert found_in(np.random.default_rng(2), num_seeds, effect=0.6, of_seeds=0.15) >= power


def test_the_interval_covers_a_planted_difference():
    rng = np.random.default_rng(3)
    for num_seeds in (3, 5):
        cases = [hierarchical_difference(simulated(rng, num_seeds, effect=0.3), resamples=DRAWS) for _ in range(CASES)]
        assert sum(case.low < 0.3 < case.high for case in cases) / CASES >= 0.93


def test_one_seed_is_scipys_bootstrap_over_examples():
    from scipy.stats import bootstrap

    values = np.random.default_rng(4).normal(0.2, 1.0, 200)
    found = hierarchical_difference([values], resamples=20_000)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0))
    low, high = theirs.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.mean == pytest.approx(values.mean())
    assert found.num_examples == 200


def test_tokens_are_weights_as_in_scipys_ratio():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(5)
    tokens = rng.integers(1, 40, 200).astype(float)
    nats = rng.normal(0.1, 0.5, 200) * tokens
    found = hierarchical_difference([nats], tokens, resamples=20_000)

    def ratio(x, w, axis=-1):
        return x.sum(axis=axis) / w.sum(axis=axis)

    theirs = bootstrap(
        (nats, tokens), ratio, paired=True, vectorized=True, method="percentile", n_resamples=20_000, batch=1000,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = theirs.confidence_interval
    assert found.mean == pytest.approx(nats.sum() / tokens.sum())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.008)


def test_seeds_that_shift_all_examples_alike_give_students_interval():
    """No scatter of examples: what is left is the paired t-interval over seeds."""
    from scipy.stats import t

    shifts = np.array([0.1, 0.3, 0.25, 0.4])
    found = hierarchical_difference(np.repeat(shifts[:, None], 50, axis=1), resamples=40_000)
    low, high = t.interval(0.95, df=3, loc=shifts.mean(), scale=shifts.std(ddof=1) / 2)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.of_seeds == pytest.approx(shifts)


@pytest.mark.parametrize("num_runs", [4, 5, 8])
def test_runs_of_one_recipe_are_rarely_put_apart(num_runs):
    """As many as 5% are promised; over examples alone nearly all are."""
    rng = np.random.default_rng(num_runs)
    for scatter in ({"of_seeds": 1.0}, {"of_seeds": 0.1}, {"of_seeds": 0.0, "rest": 0.1}):
        cases = [simulated(rng, num_runs, of_examples=1.0, **scatter) for _ in range(CASES)]
        assert sum(difference_of_seeds(runs, resamples=DRAWS).p <= 0.05 for runs in cases) / CASES <= 0.08
        if scatter["of_seeds"] == 1.0:
            alone = [hierarchical_difference([runs[0] - runs[1]], resamples=DRAWS).p for runs in cases]
            assert sum(p <= 0.05 for p in alone) / CASES > 0.8


def test_a_run_that_is_none_of_its_recipe_is_put_apart():
    """The first of eight is eight standard deviations of a seed further up: it does not hide behind itself."""
    rng, first = np.random.default_rng(7), 8.0 * np.eye(8)[:, [0]]
    found = [difference_of_seeds(simulated(rng, 8, of_seeds=1.0, rest=0.1) + first) for _ in range(100)]
    assert sum(case.p <= 0.05 for case in found) >= 95


def test_a_pair_of_seeds_has_students_interval_by_the_others():
    """No scatter of examples: what is left is t with the standard deviation of the last three, for two runs."""
    from scipy.stats import t

    figures = np.array([1.0, 1.6, 1.2, 0.9, 1.5])
    found = difference_of_seeds(np.repeat(figures[:, None], 50, axis=1), resamples=40_000)
    low, high = t.interval(0.95, df=2, loc=-0.6, scale=figures[2:].std(ddof=1) * math.sqrt(2))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06)
    assert found.of_seeds == pytest.approx([-0.6])
    assert found.mean == pytest.approx(-0.6)
    assert math.isnan(difference_of_seeds(np.ones((4, 1))).low)


def test_seeds_that_happen_to_agree_are_no_certainty():
    """By hand: both seeds have the mean 0; what is left of four figures is ±0.5, their scatter 4 · 0.25 · 2 / 4."""
    by_seed, ones = np.array([[1.0, -1.0], [0.0, 0.0]]), np.ones(2)
    assert standard_error_of_seeds(by_seed, ones) == pytest.approx(math.sqrt(4 * 0.25 * 2 / 4 / 2))
    assert standard_error_of_seeds(by_seed + np.array([[0.0], [9.0]]), ones) == pytest.approx(4.5)


def test_equal_runs_do_not_differ_and_one_example_has_no_interval():
    found = hierarchical_difference(np.zeros((3, 20)))
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    lone = hierarchical_difference([[1.0], [3.0]])
    assert lone.mean == 2.0
    assert math.isnan(lone.low)
    assert math.isnan(lone.p)


def test_the_draws_are_seeded():
    values = np.random.default_rng(6).normal(size=(3, 30))
    assert hierarchical_difference(values) == hierarchical_difference(values)
    assert hierarchical_difference(values).low != hierarchical_difference(values, seed=1).low
