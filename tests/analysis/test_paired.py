"""The interval over seeds and examples: by hand, by scipy, and how often it is wrong in simulations."""

import importlib.util
import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from paths import ROOT
from sftmix.analysis.paired import difference_of_seeds, hierarchical_difference, mean_and_sd, sign_flip_p
from sftmix.analysis.verdict import holm

CASES = 400


@pytest.fixture(scope="module")
def benchmark():
    """The simulations of `benchmarks/intervals.py`."""
    spec = importlib.util.spec_from_file_location("intervals", ROOT / "benchmarks" / "intervals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("num_seeds", [2, 3, 4, 5, 6])
def test_the_interval_covers_at_least_93_percent(benchmark, num_seeds):
    """400 cases have a standard error of 1.1 percentage points, so 91% is asserted."""
    for name in ("no seed variance", "all three comparable", "seeds dominate", "all three comparable, all heavy tails"):
        covered, _ = benchmark.simulate(name, num_seeds, 60, CASES)
        assert covered > 0.91, name


@pytest.mark.parametrize(("num_seeds", "width"), [(4, 1.7), (5, 1.5), (6, 1.4)])
def test_the_noise_of_the_examples_counts_once(benchmark, num_seeds, width):
    """Without seed variance, counting it twice gives 1.73 times the ideal width at 5 seeds, and no misses."""
    covered, found = benchmark.simulate("only the rest varies", num_seeds, 60, CASES)
    assert covered < 1
    assert found < width


def test_the_variance_is_that_of_the_two_way_table():
    """By hand: 3 seeds, 4 examples, (MS_A + MS_B - MS_R) / 12 in the two parts of Howe's formula."""
    table = np.array([[1.0, 2.0, 0.0, 5.0], [3.0, 4.0, 1.0, 8.0], [2.0, 2.0, 2.0, 9.0]])
    mean, seeds, examples = table.mean(), table.mean(axis=1), table.mean(axis=0)
    ms_a = 4 * ((seeds - mean) ** 2).sum() / 2
    ms_b = 3 * ((examples - mean) ** 2).sum() / 3
    ms_r = ((table - seeds[:, None] - examples + mean) ** 2).sum() / 6
    assert ms_b > ms_r
    half = math.hypot(
        stats.t.ppf(0.975, 2) * math.sqrt(ms_a / 12), stats.t.ppf(0.975, 3) * math.sqrt((ms_b - ms_r) / 12)
    )
    found = hierarchical_difference(table)
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))


def test_one_seed_is_students_paired_interval():
    values = np.random.default_rng(4).normal(0.2, 1.0, 200)
    found, theirs = hierarchical_difference([values]), stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.p_examples == found.p
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.num_examples == 200


def test_seeds_that_shift_all_examples_alike_give_students_interval():
    """No scatter of examples: the interval is the paired t-interval over seeds."""
    shifts = np.array([0.1, 0.3, 0.25, 0.4])
    found, theirs = hierarchical_difference(np.repeat(shifts[:, None], 50, axis=1)), stats.ttest_1samp(shifts, 0)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.of_seeds == pytest.approx(shifts)


def test_seeds_that_are_alike_give_students_interval_over_examples():
    values = np.random.default_rng(5).normal(0.2, 1.0, 60)
    found, theirs = hierarchical_difference(np.repeat(values[None], 4, axis=0)), stats.ttest_1samp(values, 0)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.p == pytest.approx(theirs.pvalue)


def test_tokens_are_weights_as_in_scipys_bootstrap_of_a_ratio():
    rng = np.random.default_rng(5)
    tokens = rng.integers(1, 40, 400).astype(float)
    nats = rng.normal(0.1, 0.5, 400) * tokens
    found = hierarchical_difference([nats], tokens)

    def ratio(x, w, axis=-1):
        return x.sum(axis=axis) / w.sum(axis=axis)

    theirs = stats.bootstrap(
        (nats, tokens), ratio, paired=True, vectorized=True, method="percentile", n_resamples=20_000, batch=1000,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    low, high = theirs.confidence_interval
    assert found.mean == pytest.approx(nats.sum() / tokens.sum())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)
    assert hierarchical_difference([nats / tokens]) == hierarchical_difference([nats / tokens], np.ones(400))
    twice = hierarchical_difference([2 * nats], 2 * tokens)
    assert (twice.low, twice.p) == pytest.approx((found.low, found.p))


def test_seeds_that_agree_by_chance_do_not_narrow_the_interval():
    """Both seeds have the mean 0.2: the interval is that over examples."""
    rest = np.random.default_rng(6).normal(0, 1, 50)
    rest -= rest.mean()
    by_seed = 0.2 + np.array([rest, -rest[::-1]])
    found = hierarchical_difference(by_seed)
    theirs = stats.ttest_1samp(by_seed.mean(axis=0), 0)
    assert found.of_seeds == pytest.approx([0.2, 0.2])
    assert found.high - found.low >= 2 * theirs.confidence_interval(0.95).high - 0.4 - 1e-9
    assert found.p >= found.p_examples


def test_p_is_below_5_percent_if_and_only_if_the_interval_excludes_0():
    rng = np.random.default_rng(7)
    seen = set()
    for _ in range(300):
        num_seeds = int(rng.integers(1, 7))
        effect, seed_sd = rng.normal(0, 0.5), rng.choice([0.0, 0.1, 1.0])
        table = effect + rng.normal(0, seed_sd, (num_seeds, 1)) + rng.normal(0, 1, (num_seeds, 30))
        tokens = rng.integers(1, 9, 30).astype(float)
        for found in (hierarchical_difference(table), hierarchical_difference(table * tokens, tokens)):
            excludes = found.low > 0 or found.high < 0
            assert (found.p < 0.05) == excludes
            seen.add(excludes)
    assert seen == {True, False}


def test_shifted_to_its_own_bound_a_difference_has_p_of_5_percent():
    table = np.random.default_rng(8).normal(0, 1, (3, 40)) + np.array([[0.1], [0.4], [-0.2]])
    found = hierarchical_difference(table)
    assert hierarchical_difference(table - found.low).p == pytest.approx(0.05)
    assert hierarchical_difference(table - found.high).p == pytest.approx(0.05)


def test_p_is_fine_enough_for_holms_correction_of_hundreds_of_comparisons():
    """With p of at least 2 / 4001, Holm's p of 500 comparisons was 0.25 at the least."""
    rng = np.random.default_rng(9)
    p_values = [hierarchical_difference(rng.normal(0, 1, (3, 200))).p for _ in range(499)]
    p_values.append(hierarchical_difference(rng.normal(2.0, 1, (5, 200)) + rng.normal(0, 0.01, (5, 1))).p)
    adjusted = holm(p_values)
    assert p_values[-1] < 1e-6
    assert adjusted[-1] < 0.05
    assert sum(p < 0.05 for p in adjusted) == 1


def test_p_is_symmetric_and_falls_with_the_effect():
    table = np.random.default_rng(10).normal(0, 1, (4, 40))
    table -= table.mean()
    found = [hierarchical_difference(table + effect).p for effect in (0.0, 0.1, 0.5, 2.0, 10.0, 1e6)]
    assert found[0] == pytest.approx(1.0, abs=1e-6)
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == len(found)
    assert hierarchical_difference(-table - 0.5).p == pytest.approx(found[2])


def test_over_examples_only_a_seed_is_taken_for_a_recipe():
    """Why one seed is not enough: the shift of a seed is found as if it were an effect of the recipe."""
    rng = np.random.default_rng(1)
    found = [hierarchical_difference(rng.normal(0, 0.3) + rng.normal(0, 1, (1, 60))) for _ in range(200)]
    assert sum(case.p < 0.05 for case in found) / 200 > 0.4


@pytest.mark.parametrize(("num_seeds", "power"), [(3, 0.8), (5, 0.98)])
def test_a_planted_difference_is_found(num_seeds, power):
    """An effect of 0.6, a seed sd of 0.15, 60 examples with an sd of 0.2 of their own and 0.5 of the rest."""
    rng, shape = np.random.default_rng(2), (num_seeds, 60)
    tables = [
        0.6 + rng.normal(0, 0.15, (num_seeds, 1)) + rng.normal(0, 0.2, (1, 60)) + rng.normal(0, 0.5, shape)
        for _ in range(CASES)
    ]
    found = [hierarchical_difference(table) for table in tables]
    assert sum(case.p < 0.05 for case in found) / CASES >= power
    assert sum(case.low < 0.6 < case.high for case in found) / CASES >= 0.92


@pytest.mark.parametrize("num_runs", [4, 5, 8])
def test_runs_of_one_recipe_are_rarely_put_apart(benchmark, num_runs):
    for seed_variance in (0.0, 0.01, 1.0):
        covered = benchmark.simulate_runs(num_runs, seed_variance, 60, CASES)
        assert covered > 0.92, seed_variance


def test_a_run_that_is_not_of_its_recipe_is_put_apart():
    """The first of eight runs is eight standard deviations of a seed above the others: it does not hide itself."""
    rng, first = np.random.default_rng(7), 8.0 * np.eye(8)[:, [0]]
    tables = [first + rng.normal(0, 1, (8, 1)) + rng.normal(0, 0.1, (8, 60)) for _ in range(100)]
    assert sum(difference_of_seeds(table).p < 0.05 for table in tables) >= 95


def test_a_pair_of_seeds_has_students_interval_by_the_others():
    """No scatter of examples: t with the standard deviation of the last three runs, for two runs."""
    values = np.array([1.0, 1.6, 1.2, 0.9, 1.5])
    found = difference_of_seeds(np.repeat(values[:, None], 50, axis=1))
    low, high = stats.t.interval(0.95, df=2, loc=-0.6, scale=values[2:].std(ddof=1) * math.sqrt(2))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.of_seeds == pytest.approx([-0.6])
    assert found.mean == pytest.approx(-0.6)
    assert math.isnan(difference_of_seeds(np.ones((4, 1))).low)


def test_equal_runs_do_not_differ_and_one_example_has_no_interval():
    found = hierarchical_difference(np.zeros((3, 20)))
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    lone = hierarchical_difference([[1.0], [3.0]])
    assert lone.mean == 2.0
    assert math.isnan(lone.low)
    assert math.isnan(lone.p)


def test_a_difference_without_any_scatter_is_certain():
    found = hierarchical_difference(np.full((3, 20), 0.25))
    assert (found.mean, found.low, found.high, found.p) == (0.25, 0.25, 0.25, 0.0)


def test_mean_and_standard_deviation():
    values = [1.0, 2.0, 4.0, 8.5]
    assert mean_and_sd(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert mean_and_sd([3.0]) == (3.0, None)


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
    values = np.random.default_rng(0).normal(0.12, 1.0, 300)
    assert sign_flip_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.015)
    assert sign_flip_p(values) == sign_flip_p(values), "the draws are seeded"


def test_nothing_differs():
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0


def test_the_p_value_against_a_value_is_students_and_agrees_with_the_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, 30)
    assert hierarchical_difference([values]).p_against(0.1) == pytest.approx(stats.ttest_1samp(values, 0.1).pvalue)
    for _ in range(50):
        found = hierarchical_difference(rng.normal(0.1, 1, (3, 30)))
        assert found.p_against(0.0) == pytest.approx(found.p)
        assert found.p_against(found.low) == pytest.approx(0.05)
        assert (found.p_against(0.5) < 0.05) == (not found.low < 0.5 < found.high)
