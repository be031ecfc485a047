"""The sampler of whole steps: each example once an epoch, halves balanced, a pure function of seed and epoch."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftmix.data.pairing import StepSampler, descending
from sftmix.errors import InputError


def sampler(halves, batch=8, seed=0, alpha=0.5):
    return StepSampler(len(halves), halves, global_batch_size=batch, alpha=alpha, seed=seed)


CASES = {
    "even": [True, False] * 16,
    "short last step": [True, False] * 19,
    "odd": [True] * 10 + [False] * 11,
    "one over full steps": [True] * 8 + [False] * 8 + [None],
    "surplus": [True] * 5 + [False] * 20,
    "without confidence": [True] * 12 + [False] * 12 + [None] * 9,
    "one pair": [True, False],
    "no pair": [True] * 7,
}


@pytest.mark.parametrize("halves", CASES.values(), ids=CASES)
def test_each_example_appears_once_an_epoch(halves):
    for epoch in range(3):
        steps = sampler(halves).epoch(epoch)
        assert sorted(itertools.chain(*(s.examples for s in steps))) == list(range(len(halves)))


@pytest.mark.parametrize("halves", CASES.values(), ids=CASES)
def test_every_step_is_full_but_the_last(halves):
    dealt = sampler(halves)
    sizes = [len(step.examples) for step in dealt.epoch(0)]
    assert all(size == 8 for size in sizes[:-1])
    assert len(sizes) == dealt.steps_per_epoch == -(-len(halves) // 8)


@pytest.mark.parametrize("halves", CASES.values(), ids=CASES)
def test_partners_come_from_opposite_halves(halves):
    dealt = sampler(halves)
    for step in dealt.epoch(0):
        assert len(step.confident) == len(step.unconfident) == len(step.lam)
        assert all(halves[i] is True for i in step.confident)
        assert all(halves[i] is False for i in step.unconfident)
    assert dealt.num_pairs == min(halves.count(True), halves.count(False))
    assert dealt.num_singles == len(halves) - 2 * dealt.num_pairs


def test_examples_without_partner_are_spread_evenly():
    steps = sampler([True] * 32 + [False] * 32 + [None] * 16).epoch(0)
    assert {len(step.singles) for step in steps} <= {0, 2}
    assert sum(len(step.singles) for step in steps[:5]) in (8, 6, 10)


def test_a_step_is_a_function_of_seed_and_epoch():
    halves = CASES["without confidence"]
    assert sampler(halves).epoch(3) == sampler(halves).epoch(3)
    assert sampler(halves).epoch(3) != sampler(halves).epoch(4)
    assert sampler(halves).epoch(3) != sampler(halves, seed=1).epoch(3)


def test_lambda_follows_the_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); 20,000 draws of each."""
    halves = [True, False] * 20000
    for alpha in (0.2, 0.5, 2.0):
        lam = np.array([x for step in sampler(halves, batch=32, alpha=alpha).epoch(0) for x in step.lam])
        assert lam.mean() == pytest.approx(0.5, abs=0.01)
        assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_without_halves_all_examples_are_single():
    steps = StepSampler(10, None, global_batch_size=4, seed=0).epoch(0)
    assert [len(step.singles) for step in steps] == [4, 4, 2]
    assert not any(step.confident for step in steps)


def test_fewer_than_two_examples_are_refused():
    with pytest.raises(InputError, match="1 examples to train on, expected at least 2"):
        StepSampler(1, None, global_batch_size=4, seed=0)


def lengths_of(number):
    return [(37 * i) % 101 + 1 for i in range(number)]


def window(halves, steps):
    return StepSampler(
        len(halves),
        halves,
        global_batch_size=8,
        alpha=0.5,
        seed=0,
        lengths=lengths_of(len(halves)),
        length_window=steps,
    )


@pytest.mark.parametrize("halves", CASES.values(), ids=CASES)
@pytest.mark.parametrize("steps", [2, 3, 100])
def test_a_length_window_moves_pairs_between_steps_and_leaves_them_whole(halves, steps):
    def pairs(dealt):
        return sorted(p for step in dealt for p in zip(step.confident, step.unconfident, step.lam, strict=True))

    plain, moved = sampler(halves).epoch(1), window(halves, steps).epoch(1)
    assert pairs(moved) == pairs(plain)
    assert sorted(itertools.chain(*(s.examples for s in moved))) == list(range(len(halves)))
    sizes = [len(step.examples) for step in moved]
    assert all(size == 8 for size in sizes[:-1])
    assert len(sizes) == len(plain)


def test_a_length_window_brings_like_lengths_together_and_mixes_the_order_of_the_steps():
    halves, lengths = [True, False] * 400, lengths_of(800)

    def padding(dealt):
        pairs = (pair for s in dealt for pair in zip(s.confident, s.unconfident, strict=True))
        longest = sum(max(lengths[i] for i in pair) for pair in pairs)
        return sum(4 * max(lengths[i] for i in s.examples) for s in dealt) / longest

    steps = window(halves, 25).epoch(0)
    assert padding(steps) < 1.1
    assert padding(sampler(halves).epoch(0)) > 1.3
    longest = [max(lengths[i] for i in step.examples) for step in steps[:25]]
    assert longest != sorted(longest)
    assert steps == window(halves, 25).epoch(0)


def test_without_a_window_lengths_change_nothing():
    halves = CASES["surplus"]
    assert window(halves, 1).epoch(3) == sampler(halves).epoch(3)


def in_order(halves, order, batch=8, seed=0, steps=1):
    lengths = lengths_of(len(halves))
    return StepSampler(
        len(halves),
        halves,
        global_batch_size=batch,
        alpha=0.5,
        seed=seed,
        lengths=lengths,
        length_window=steps,
        order=order,
    )


def pairs_of(steps):
    return sorted(pair for s in steps for pair in zip(s.confident, s.unconfident, strict=True))


def singles_of(steps):
    return sorted(i for step in steps for i in step.singles)


def test_the_order_of_values_falls_and_ties_go_by_id():
    assert descending([0.5, 2.0, 2.0, -1.0], ["a", "c", "b", "d"]) == [2, 1, 0, 3]


def test_by_rank_the_kth_of_one_half_meets_the_kth_of_the_other():
    """Confidence by hand: 1, 4, 2 are the confident ones from the most to the least, 5, 0, 3 the others."""
    confidence = [-7.0, -1.0, -3.0, -9.0, -2.0, -6.0]
    halves = [False, True, True, False, True, False]
    steps = in_order(halves, descending(confidence, list("abcdef"))).epoch(0)
    assert pairs_of(steps) == [(1, 5), (2, 3), (4, 0)]
    assert singles_of(steps) == []


def test_the_surplus_is_spread_evenly_over_the_order():
    """Of nine in their order three meet someone: the second, the fifth and the eighth."""
    halves = [True] * 3 + [False] * 9
    steps = in_order(halves, [2, 0, 1, *range(3, 12)]).epoch(0)
    assert pairs_of(steps) == [(0, 10), (1, 4), (2, 7)]
    assert singles_of(steps) == [3, 5, 6, 8, 9, 11]


@pytest.mark.parametrize("halves", CASES.values(), ids=CASES)
def test_partners_by_order_are_the_same_each_epoch_and_their_steps_and_lambda_are_not(halves):
    places = [(7 * i) % len(halves) for i in range(len(halves))]
    dealt = in_order(halves, places)
    first, second = dealt.epoch(0), dealt.epoch(1)
    for steps in (first, second):
        assert sorted(itertools.chain(*(s.examples for s in steps))) == list(range(len(halves)))
        assert [len(s.examples) for s in steps] == [len(s.examples) for s in sampler(halves).epoch(0)]
    assert pairs_of(first) == pairs_of(second) == pairs_of(in_order(halves, places, seed=5).epoch(0))
    assert singles_of(first) == singles_of(second)
    assert first == in_order(halves, places).epoch(0)
    if dealt.num_pairs > 1:
        assert first != second
        assert {x for s in first for x in s.lam}.isdisjoint(x for s in second for x in s.lam)
        assert first != in_order(halves, places, seed=5).epoch(0)
    if dealt.num_pairs > 10:
        assert [s.confident for s in first] != [s.confident for s in second]


@given(st.data(), st.lists(st.sampled_from([True, False, None]), min_size=2, max_size=60))
def test_by_order_each_example_appears_once_and_partners_keep_the_order(data, halves):
    places = data.draw(st.permutations(range(len(halves))))
    steps = in_order(halves, places, steps=data.draw(st.sampled_from([1, 3])), seed=data.draw(st.integers(0, 9)))
    steps = steps.epoch(data.draw(st.integers(0, 9)))
    assert sorted(itertools.chain(*(s.examples for s in steps))) == list(range(len(halves)))
    pairs = pairs_of(steps)
    assert len(pairs) == min(halves.count(True), halves.count(False))
    by_confident = sorted(pairs, key=lambda pair: places[pair[0]])
    assert by_confident == sorted(pairs, key=lambda pair: places[pair[1]])
    assert all(halves[c] is True and halves[u] is False for c, u in pairs)


def covered(steps, lengths):
    return sum(min(lengths[c], lengths[u]) for c, u in pairs_of(steps))


def test_by_length_more_positions_are_mixed_than_by_any_of_many_random_pairings(shared):
    """On the lengths of Alpaca's responses (in words), halves at random and a part of a third."""
    import json

    file = next((shared / "data").rglob("alpaca_data*.json"), None)
    if file is None:
        pytest.skip("no Alpaca")
    lengths = [len(row["output"].split()) + 1 for row in json.loads(file.read_text())[:2000]]
    order = descending(lengths, [f"{i:05d}" for i in range(len(lengths))])
    drawn = np.random.default_rng(0).permutation(len(lengths))
    for share in (2, 3):
        halves = (drawn % share == 0).tolist()
        by_length = covered(in_order(halves, order, batch=32).epoch(0), lengths)
        at_random = [covered(sampler(halves, batch=32, seed=seed).epoch(0), lengths) for seed in range(20)]
        assert by_length > 1.3 * max(at_random)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.data())
def test_between_equal_halves_no_pairing_mixes_more_than_that_by_length(confident, data):
    """Rearrangement: the sum of the minima is largest where both are sorted."""
    number = len(confident)
    unconfident = data.draw(st.lists(st.integers(1, 40), min_size=number, max_size=number))
    lengths, halves = confident + unconfident, [True] * number + [False] * number
    order = descending(lengths, [f"{i:03d}" for i in range(2 * number)])
    other = sum(map(min, confident, data.draw(st.permutations(unconfident))))
    assert covered(in_order(halves, order).epoch(0), lengths) >= other
