"""StepSampler: each example once per epoch, partners of opposite subsets, a pure function of seed and epoch."""

import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftmix.data.layout import split_into_microbatches
from sftmix.data.pairing import (
    FirstEpochSampler,
    SamplerSettings,
    StepSampler,
    descending_ranks,
    random_subsets,
    subsets_by_group,
    subsets_by_length,
)
from sftmix.errors import InputError

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
every_case = pytest.mark.parametrize("subsets", CASES.values(), ids=CASES)


def lengths_of(count):
    return [(37 * i) % 101 + 1 for i in range(count)]


def sampler_of(subsets, *, batch=8, seed=0, alpha=0.5, window=1, pair_order=None, pairing="across"):
    settings = SamplerSettings(global_batch_size=batch, seed=seed, alpha=alpha, length_window=window, pairing=pairing)
    return StepSampler(len(subsets), subsets, settings, lengths=lengths_of(len(subsets)), pair_order=pair_order)


def pairs_of(steps):
    return sorted(pair for step in steps for pair in zip(step.confident, step.unconfident, strict=True))


def unpaired_of(steps):
    return sorted(i for step in steps for i in step.unpaired)


def lams_of(steps):
    return [lam for step in steps for lam in step.lam]


def examples_of(steps):
    return sorted(itertools.chain(*(step.examples for step in steps)))


@every_case
def test_each_example_appears_once_per_epoch(subsets):
    for epoch in range(3):
        assert examples_of(sampler_of(subsets).epoch(epoch)) == list(range(len(subsets)))


@every_case
def test_every_step_except_the_last_is_full(subsets):
    sampler = sampler_of(subsets)
    sizes = [len(step.examples) for step in sampler.epoch(0)]
    assert all(size == 8 for size in sizes[:-1])
    assert len(sizes) == sampler.steps_per_epoch == -(-len(subsets) // 8)


@every_case
def test_partners_come_from_opposite_subsets(subsets):
    sampler = sampler_of(subsets)
    for step in sampler.epoch(0):
        assert len(step.confident) == len(step.unconfident) == len(step.lam)
        assert all(subsets[i] is True for i in step.confident)
        assert all(subsets[i] is False for i in step.unconfident)
    assert sampler.num_pairs == min(subsets.count(True), subsets.count(False))
    assert sampler.num_unpaired == len(subsets) - 2 * sampler.num_pairs


def test_unpaired_examples_are_spread_evenly():
    steps = sampler_of([True] * 32 + [False] * 32 + [None] * 16).epoch(0)
    assert {len(step.unpaired) for step in steps} <= {0, 2}
    assert sum(len(step.unpaired) for step in steps[:5]) in (8, 6, 10)


def test_a_step_is_a_function_of_seed_and_epoch():
    subsets = CASES["without confidence"]
    assert sampler_of(subsets).epoch(3) == sampler_of(subsets).epoch(3)
    assert sampler_of(subsets).epoch(3) != sampler_of(subsets).epoch(4)
    assert sampler_of(subsets).epoch(3) != sampler_of(subsets, seed=1).epoch(3)


def test_partners_are_drawn_at_random_and_anew_in_each_epoch():
    """Of 400 random pairs one is expected to join examples of the same rank, and one to be drawn again."""
    sampler = sampler_of([True] * 400 + [False] * 400)
    first, second = (set(pairs_of(sampler.epoch(epoch))) for epoch in range(2))
    assert sum(u - c == 400 for c, u in first) < 10
    assert len(first & second) < 10


def test_lam_is_drawn_for_each_pair_from_the_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); 20,000 draws of each."""
    subsets = [True, False] * 20000
    for alpha in (0.2, 0.5, 2.0):
        steps = sampler_of(subsets, batch=32, alpha=alpha).epoch(0)
        lam = np.array(lams_of(steps))
        assert lam.mean() == pytest.approx(0.5, abs=0.01)
        assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert all(len(set(step.lam)) == len(step.lam) for step in sampler_of([True, False] * 16).epoch(0))


def test_without_subsets_all_examples_are_unpaired():
    steps = StepSampler(10, None, SamplerSettings(global_batch_size=4, seed=0)).epoch(0)
    assert [len(step.unpaired) for step in steps] == [4, 4, 2]
    assert not any(step.confident for step in steps)


def test_unpaired_examples_are_shuffled_anew_in_each_epoch():
    sampler = StepSampler(100, None, SamplerSettings(global_batch_size=10, seed=0))
    first, second = ([i for step in sampler.epoch(epoch) for i in step.unpaired] for epoch in range(2))
    assert first != sorted(first)
    assert first != second


def test_the_first_epoch_has_no_pairs_and_the_later_ones_are_those_of_the_subsets():
    settings, subsets = SamplerSettings(global_batch_size=8, seed=0, alpha=0.5), [i % 2 == 0 for i in range(21)]
    sampler = FirstEpochSampler(21, settings)
    assert sampler.epoch(0) == StepSampler(21, None, settings).epoch(0)
    assert sampler.paired.num_pairs == 0
    with pytest.raises(RuntimeError, match="epoch 1: the subsets are not known"):
        sampler.epoch(1)
    sampler.use_subsets(subsets, None)
    assert [sampler.epoch(1), sampler.epoch(2)] == [StepSampler(21, subsets, settings).epoch(k) for k in (1, 2)]
    assert sampler.epoch(0) == StepSampler(21, None, settings).epoch(0)
    assert sampler.paired.num_pairs == 10


def test_fewer_than_two_examples_are_refused():
    with pytest.raises(InputError, match="1 examples to train on, expected at least 2"):
        StepSampler(1, None, SamplerSettings(global_batch_size=4, seed=0))


def test_an_odd_batch_of_pairs_is_refused():
    with pytest.raises(ValueError, match="global_batch_size=3: expected an even number"):
        sampler_of([True, False], batch=3)


@pytest.mark.parametrize("name", ["is_confident", "lengths", "pair_order"])
def test_a_sequence_of_another_length_than_the_examples_is_refused(name):
    arguments = {"is_confident": [True, False], "lengths": [1, 1], "pair_order": [0, 1]} | {name: [0]}
    with pytest.raises(ValueError, match=f"{name} has 1 entries, expected one for each of 2 examples"):
        StepSampler(2, settings=SamplerSettings(global_batch_size=2, seed=0), **arguments)


def test_a_length_window_without_lengths_is_refused():
    with pytest.raises(ValueError, match="length_window=2: expected lengths"):
        StepSampler(2, None, SamplerSettings(global_batch_size=2, seed=0, length_window=2))


@every_case
@pytest.mark.parametrize("window", [2, 3, 100])
def test_a_length_window_moves_pairs_between_steps_and_keeps_partners_and_lam(subsets, window):
    def pairs(steps):
        return sorted(p for step in steps for p in zip(step.confident, step.unconfident, step.lam, strict=True))

    plain, moved = sampler_of(subsets).epoch(1), sampler_of(subsets, window=window).epoch(1)
    assert pairs(moved) == pairs(plain)
    assert examples_of(moved) == list(range(len(subsets)))
    sizes = [len(step.examples) for step in moved]
    assert all(size == 8 for size in sizes[:-1])
    assert len(sizes) == len(plain)


def test_a_length_window_groups_similar_lengths_and_shuffles_the_steps():
    subsets, lengths = [True, False] * 400, lengths_of(800)

    def padding(steps):
        pairs = (pair for s in steps for pair in zip(s.confident, s.unconfident, strict=True))
        longest = sum(max(lengths[i] for i in pair) for pair in pairs)
        return sum(4 * max(lengths[i] for i in s.examples) for s in steps) / longest

    steps = sampler_of(subsets, window=25).epoch(0)
    assert padding(steps) < 1.1
    assert padding(sampler_of(subsets).epoch(0)) > 1.3
    longest = [max(lengths[i] for i in step.examples) for step in steps[:25]]
    assert longest != sorted(longest)
    assert steps == sampler_of(subsets, window=25).epoch(0)


def test_without_a_length_window_lengths_change_nothing():
    subsets = CASES["surplus"]
    without_lengths = StepSampler(len(subsets), subsets, SamplerSettings(global_batch_size=8, seed=0, alpha=0.5))
    assert sampler_of(subsets).epoch(3) == without_lengths.epoch(3)


def test_ranks_descend_with_the_values_and_ties_are_broken_by_id():
    assert descending_ranks([0.5, 2.0, 2.0, -1.0], ["a", "c", "b", "d"]) == [2, 1, 0, 3]


def test_with_a_pair_order_the_kth_confident_example_is_paired_with_the_kth_unconfident_one():
    """By hand: the confident ones are 1, 4, 2 from the most to the least confident, the unconfident ones 5, 0, 3."""
    confidence = [-7.0, -1.0, -3.0, -9.0, -2.0, -6.0]
    subsets = [False, True, True, False, True, False]
    steps = sampler_of(subsets, pair_order=descending_ranks(confidence, list("abcdef"))).epoch(0)
    assert pairs_of(steps) == [(1, 5), (2, 3), (4, 0)]
    assert unpaired_of(steps) == []


def test_the_surplus_is_spread_evenly_over_the_pair_order():
    """Of nine ordered examples three are paired: the second, the fifth and the eighth."""
    subsets = [True] * 3 + [False] * 9
    steps = sampler_of(subsets, pair_order=[2, 0, 1, *range(3, 12)]).epoch(0)
    assert pairs_of(steps) == [(0, 10), (1, 4), (2, 7)]
    assert unpaired_of(steps) == [3, 5, 6, 8, 9, 11]


@every_case
def test_a_pair_order_fixes_partners_over_epochs_but_neither_their_steps_nor_lam(subsets):
    order = [(7 * i) % len(subsets) for i in range(len(subsets))]
    sampler = sampler_of(subsets, pair_order=order)
    first, second = sampler.epoch(0), sampler.epoch(1)
    for steps in (first, second):
        assert examples_of(steps) == list(range(len(subsets)))
        assert [len(s.examples) for s in steps] == [len(s.examples) for s in sampler_of(subsets).epoch(0)]
    of_another_seed = sampler_of(subsets, pair_order=order, seed=5).epoch(0)
    assert pairs_of(first) == pairs_of(second) == pairs_of(of_another_seed)
    assert unpaired_of(first) == unpaired_of(second)
    assert first == sampler_of(subsets, pair_order=order).epoch(0)
    if sampler.num_pairs > 1:
        assert first != second
        assert set(lams_of(first)).isdisjoint(lams_of(second))
        assert first != of_another_seed
    if sampler.num_pairs > 10:
        assert [s.confident for s in first] != [s.confident for s in second]


@given(st.data(), st.lists(st.sampled_from([True, False, None]), min_size=2, max_size=60))
def test_with_a_pair_order_each_example_appears_once_and_partners_keep_the_order(data, subsets):
    order = data.draw(st.permutations(range(len(subsets))))
    window, seed = data.draw(st.sampled_from([1, 3])), data.draw(st.integers(0, 9))
    steps = sampler_of(subsets, pair_order=order, window=window, seed=seed).epoch(data.draw(st.integers(0, 9)))
    assert examples_of(steps) == list(range(len(subsets)))
    pairs = pairs_of(steps)
    assert len(pairs) == min(subsets.count(True), subsets.count(False))
    by_confident = sorted(pairs, key=lambda pair: order[pair[0]])
    assert by_confident == sorted(pairs, key=lambda pair: order[pair[1]])
    assert all(subsets[c] is True and subsets[u] is False for c, u in pairs)


def num_mixed(steps, lengths):
    return sum(min(lengths[c], lengths[u]) for c, u in pairs_of(steps))


def test_pairs_of_similar_length_mix_more_tokens_than_any_of_many_random_pairings(shared):
    """On the lengths of Alpaca's responses in words, with random subsets of one half and of one third."""
    file = next((shared / "data").rglob("alpaca_data*.json"), None)
    if file is None:
        pytest.skip("no Alpaca")
    lengths = [len(row["output"].split()) + 1 for row in json.loads(file.read_text())[:2000]]
    order = descending_ranks(lengths, [f"{i:05d}" for i in range(len(lengths))])
    drawn = np.random.default_rng(0).permutation(len(lengths))
    for share in (2, 3):
        subsets = (drawn % share == 0).tolist()
        by_length = num_mixed(sampler_of(subsets, pair_order=order, batch=32).epoch(0), lengths)
        at_random = [num_mixed(sampler_of(subsets, batch=32, seed=seed).epoch(0), lengths) for seed in range(20)]
        assert by_length > 1.3 * max(at_random)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.data())
def test_between_subsets_of_equal_size_no_pairing_mixes_more_tokens_than_the_one_by_length(confident, data):
    """Rearrangement inequality: the sum of the minima is largest if both subsets are sorted."""
    count = len(confident)
    unconfident = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    lengths, subsets = confident + unconfident, [True] * count + [False] * count
    order = descending_ranks(lengths, [f"{i:03d}" for i in range(2 * count)])
    other = sum(map(min, confident, data.draw(st.permutations(unconfident))))
    assert num_mixed(sampler_of(subsets, pair_order=order).epoch(0), lengths) >= other


@every_case
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("pairing", ["free", "within"])
def test_partners_drawn_again_inside_a_step_keep_its_examples_and_lam(subsets, window, pairing):
    across = sampler_of(subsets, window=window).epoch(2)
    again = sampler_of(subsets, window=window, pairing=pairing).epoch(2)
    assert [sorted(step.examples) for step in again] == [sorted(step.examples) for step in across]
    for step, plain in zip(again, across, strict=True):
        count = len(step.lam)
        assert step.lam == plain.lam[:count]
        assert len(step.confident) == len(step.unconfident) == count
        pairs = zip(step.confident, step.unconfident, strict=True)
        if pairing == "within":
            assert all(subsets[a] is subsets[b] for a, b in pairs)
            assert count == len(plain.lam) - len(plain.lam) % 2
        else:
            assert (count, step.unpaired) == (len(plain.lam), plain.unpaired)


@pytest.mark.parametrize("pairing", ["free", "within"])
def test_partners_inside_a_step_are_drawn_anew_by_seed_and_epoch(pairing):
    subsets = [True, False] * 200

    def pairs(**more):
        epoch = more.pop("epoch", 0)
        steps = sampler_of(subsets, batch=400, pairing=pairing, **more).epoch(epoch)
        return {frozenset(pair) for pair in pairs_of(steps)}

    assert pairs() == pairs()
    assert max(len(pairs() & pairs(epoch=1)), len(pairs() & pairs(seed=1))) < 10


def test_free_partners_are_uniform_over_the_matchings_of_a_step():
    """Four examples have three matchings. Of 2n, an example crosses the subsets with probability n / (2n - 1)."""
    counts = dict.fromkeys([(0, 1), (0, 2), (0, 3)], 0)
    small = sampler_of([True, True, False, False], batch=4, pairing="free")
    for epoch in range(3000):
        pairs = (tuple(sorted(pair)) for pair in pairs_of(small.epoch(epoch)))
        counts[next(pair for pair in pairs if 0 in pair)] += 1
    assert all(abs(count - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for count in counts.values()), counts
    subsets = [True, False] * 1600
    pairs = pairs_of(sampler_of(subsets, batch=32, pairing="free").epoch(0))
    crossing = sum(subsets[a] is not subsets[b] for a, b in pairs) / len(pairs)
    assert crossing == pytest.approx(16 / 31, abs=4 * (0.25 / 1600) ** 0.5)


@pytest.mark.parametrize("pairing", ["free", "within"])
def test_ranks_and_micro_batches_change_no_pair_that_is_drawn_again(pairing):
    subsets = CASES["without confidence"]
    lengths = dict(enumerate(lengths_of(len(subsets))))
    for step in sampler_of(subsets, pairing=pairing).epoch(0):
        expected = sorted(zip(step.confident, step.unconfident, step.lam, strict=True))
        for world_size, tokens in itertools.product((1, 2, 3), (50, 10_000)):
            ranks = split_into_microbatches(
                step, lengths, micro_batch_tokens=tokens, padded=False, world_size=world_size
            )
            micro = [part for rank in ranks for part in rank]
            assert sorted(p for m in micro for p in zip(m.confident, m.unconfident, m.lam, strict=True)) == expected


IDS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=6), min_size=1, max_size=60, unique=True)


def chosen(ids, halves):
    assert len(ids) == len(halves)
    return {i for i, half in zip(ids, halves, strict=True) if half}


def test_shorter_responses_are_confident_and_ties_are_broken_by_id():
    assert subsets_by_length([5, 1, 3, 9], ["a", "b", "c", "d"]) == [False, True, True, False]
    assert subsets_by_length([2, 2, 2, 1], ["d", "b", "c", "a"]) == [False, True, False, True]
    assert subsets_by_length([1, 2, 3], ["a", "b", "c"]) == [True, False, False], "of an odd number one more is long"


def test_one_group_is_confident():
    assert subsets_by_group(["high", "low", "", "high"], "high") == [True, False, False, True]


@given(IDS, st.integers(0, 2**31 - 1), st.randoms(use_true_random=False))
def test_random_subsets_have_equal_sizes_and_do_not_depend_on_order(ids, seed, r):
    mine = chosen(ids, random_subsets(ids, seed))
    assert len(mine) == len(ids) // 2
    shuffled = r.sample(ids, len(ids))
    assert chosen(shuffled, random_subsets(shuffled, seed)) == mine


@given(IDS, st.data())
def test_subsets_by_length_have_equal_sizes_and_do_not_depend_on_order(ids, data):
    lengths = dict(zip(ids, data.draw(st.lists(st.integers(1, 5), min_size=len(ids), max_size=len(ids))), strict=True))
    mine = chosen(ids, subsets_by_length(list(lengths.values()), ids))
    assert len(mine) == len(ids) // 2
    others = set(ids) - mine
    assert not mine or max(lengths[i] for i in mine) <= min(lengths[i] for i in others)
    shuffled = data.draw(st.permutations(ids))
    assert chosen(shuffled, subsets_by_length([lengths[i] for i in shuffled], shuffled)) == mine


def test_seeds_draw_different_subsets_and_each_example_is_in_half_of_them():
    ids = [f"{random.Random(k).getrandbits(64):016x}" for k in range(400)]
    drawn = [random_subsets(ids, seed) for seed in range(60)]
    assert len({tuple(halves) for halves in drawn}) == 60
    shares = [sum(halves[k] for halves in drawn) / 60 for k in range(400)]
    assert sum(shares) / 400 == pytest.approx(0.5)
    assert max(abs(share - 0.5) for share in shares) < 0.3


def test_random_subsets_are_independent_of_a_random_selection_of_the_same_seed():
    from sftmix.data.selection import random_examples

    ids = [f"{random.Random(k).getrandbits(64):016x}" for k in range(2000)]
    selected = random_examples(ids, 1000, 7).tolist()
    halves = random_subsets(ids, 7)
    assert sum(halves[i] for i in selected) / 1000 == pytest.approx(0.5, abs=0.06)
