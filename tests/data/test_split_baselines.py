"""What may stand in the place of the split by confidence: sizes, determinism, no matter in which order."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftmix.data.split_baselines import random_subsets, subsets_by_group, subsets_by_length

IDS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=6), min_size=1, max_size=60, unique=True)


def chosen(ids, halves):
    assert len(ids) == len(halves)
    return {i for i, half in zip(ids, halves, strict=True) if half}


def test_the_shorter_responses_play_the_confident_part_and_ties_go_by_id():
    assert subsets_by_length([5, 1, 3, 9], ["a", "b", "c", "d"]) == [False, True, True, False]
    assert subsets_by_length([2, 2, 2, 1], ["d", "b", "c", "a"]) == [False, True, False, True]
    assert subsets_by_length([1, 2, 3], ["a", "b", "c"]) == [True, False, False], "of an odd number one more is long"


def test_one_group_plays_the_confident_part():
    assert subsets_by_group(["high", "low", "", "high"], "high") == [True, False, False, True]


@given(IDS, st.integers(0, 2**31 - 1), st.randoms(use_true_random=False))
def test_random_halves_are_of_equal_size_and_no_matter_of_order(ids, seed, r):
    mine = chosen(ids, random_subsets(ids, seed))
    assert len(mine) == len(ids) // 2
    shuffled = r.sample(ids, len(ids))
    assert chosen(shuffled, random_subsets(shuffled, seed)) == mine


@given(IDS, st.data())
def test_subsets_by_length_are_of_equal_size_and_no_matter_of_order(ids, data):
    lengths = dict(zip(ids, data.draw(st.lists(st.integers(1, 5), min_size=len(ids), max_size=len(ids))), strict=True))
    mine = chosen(ids, subsets_by_length(list(lengths.values()), ids))
    assert len(mine) == len(ids) // 2
    others = set(ids) - mine
    assert not mine or max(lengths[i] for i in mine) <= min(lengths[i] for i in others)
    shuffled = data.draw(st.permutations(ids))
    assert chosen(shuffled, subsets_by_length([lengths[i] for i in shuffled], shuffled)) == mine


def test_another_seed_is_another_half_and_each_example_is_in_half_of_them():
    ids = [f"{random.Random(k).getrandbits(64):016x}" for k in range(400)]
    drawn = [random_subsets(ids, seed) for seed in range(60)]
    assert len({tuple(halves) for halves in drawn}) == 60
    shares = [sum(halves[k] for halves in drawn) / 60 for k in range(400)]
    assert sum(shares) / 400 == pytest.approx(0.5)
    assert max(abs(share - 0.5) for share in shares) < 0.3


def test_random_halves_have_nothing_to_do_with_a_random_selection_of_the_same_seed():
    from sftmix.data.selection import random_examples

    ids = [f"{random.Random(k).getrandbits(64):016x}" for k in range(2000)]
    selected = random_examples(ids, 1000, 7).tolist()
    halves = random_subsets(ids, 7)
    assert sum(halves[i] for i in selected) / 1000 == pytest.approx(0.5, abs=0.06)
