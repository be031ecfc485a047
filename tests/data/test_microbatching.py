"""Division of a step into micro-batches: each example once, whole pairs, balanced ranks, within the budget."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sftmix.data.microbatching import split_into_microbatches
from sftmix.data.pairing import Step

steps = st.tuples(st.integers(0, 8), st.integers(0, 5)).filter(any)


def step_of(pairs, unpaired):
    return Step(
        tuple(range(pairs)),
        tuple(range(pairs, 2 * pairs)),
        tuple(k / 10 for k in range(pairs)),
        tuple(range(2 * pairs, 2 * pairs + unpaired)),
    )


@given(
    steps,
    st.lists(st.integers(1, 50), min_size=21, max_size=21),
    st.integers(1, 200),
    st.booleans(),
    st.integers(1, 5),
)
def test_each_pair_is_in_one_micro_batch_and_the_budget_holds(counts, lengths, budget, padded, world_size):
    step = step_of(*counts)
    ranks = split_into_microbatches(
        step, dict(enumerate(lengths)), micro_batch_tokens=budget, padded=padded, world_size=world_size
    )
    assert len(ranks) == world_size
    assert len({len(parts) for parts in ranks}) == 1, "the same number of micro-batches on every rank"
    parts = list(itertools.chain(*ranks))
    pairs = [p for part in parts for p in zip(part.confident, part.unconfident, part.lam, strict=True)]
    assert sorted(pairs) == sorted(zip(step.confident, step.unconfident, step.lam, strict=True))
    assert sorted(i for part in parts for i in part.unpaired) == sorted(step.unpaired)
    for part in parts:
        tokens = [lengths[i] for i in part.examples]
        size = len(tokens) * max(tokens, default=0) if padded else sum(tokens)
        units = len(part.lam) + len(part.unpaired)
        assert units <= 1 or size <= budget
    if world_size == 1:
        assert all(part.examples for part in parts), "a single rank has no empty micro-batch"


@given(st.lists(st.integers(1, 50), min_size=32, max_size=32), st.integers(2, 8))
def test_token_counts_of_ranks_balance(lengths, world_size):
    """Assigned largest first to the least loaded rank, two ranks differ by at most the largest pair."""
    ranks = split_into_microbatches(
        step_of(16, 0), dict(enumerate(lengths)), micro_batch_tokens=10**6, padded=False, world_size=world_size
    )
    loads = [sum(lengths[i] for part in parts for i in part.examples) for parts in ranks]
    assert max(loads) - min(loads) <= max(lengths[k] + lengths[16 + k] for k in range(16))


def test_micro_batches_are_as_few_as_the_budget_allows_and_about_equal():
    lengths = dict.fromkeys(range(16), 10)
    (parts,) = split_into_microbatches(step_of(8, 0), lengths, micro_batch_tokens=100, padded=False)
    assert [len(part.examples) for part in parts] == [8, 8]


def test_the_same_step_is_divided_the_same_way_again():
    lengths = {i: (7 * i) % 13 + 1 for i in range(16)}
    first, second = (
        split_into_microbatches(step_of(8, 0), lengths, micro_batch_tokens=40, padded=True, world_size=3)
        for _ in range(2)
    )
    assert first == second
