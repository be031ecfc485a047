"""HashSet: it knows the hashes that were added, and takes few bytes."""

import random
import tracemalloc

import pytest

from sftmix.data.hash_set import HashSet


@pytest.mark.parametrize("fewest", [1, 7, 10_000])
def test_it_knows_what_was_added(monkeypatch, fewest):
    monkeypatch.setattr("sftmix.data.hash_set.MOST_UNSORTED", fewest)
    draw = random.Random(0)
    keys = [0, 1, 2**63, 2**64 - 1, -1, *(draw.getrandbits(64) for _ in range(300))]
    found, known = HashSet(), set()
    for key in [*keys, *reversed(keys)]:
        assert (key in found) == (key % 2**64 in known)
        assert found.add(key) == (key % 2**64 not in known)
        known.add(key % 2**64)
        assert len(found) == len(known)


def test_hashes_that_differ_by_one_are_different():
    """As floats they would be equal."""
    found = HashSet()
    for key in range(2**62, 2**62 + 5000):
        assert found.add(key)
    assert not any(found.add(key) for key in range(2**62, 2**62 + 5000))
    assert 2**62 + 5000 not in found


def test_a_hash_takes_some_bytes():
    draw = random.Random(0)
    tracemalloc.start()
    found = HashSet()
    for _ in range(100_000):
        found.add(draw.getrandbits(64))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / len(found) < 16
