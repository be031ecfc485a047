"""The sampler of whole steps: each example once an epoch, halves balanced, a pure function of seed and epoch."""

import itertools

import numpy as np
import pytest

from sftmix.data.pairing import StepSampler
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
