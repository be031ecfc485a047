"""Parts by confidence, by hand and against the split of the recipe."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sftmix.evaluation.offline.quantile_bins import HALVES, TERCILES, by_confidence
from sftmix.functional.confidence import split_by_confidence


def test_terciles_by_hand():
    confidence = {"a": -3.0, "b": -1.0, "c": -2.0, "d": -9.0, "e": -1.0, "f": -4.0, "g": -5.0}
    found = by_confidence(confidence, TERCILES)
    assert list(found.values()) == [["b", "e"], ["c", "a"], ["f", "g", "d"]]


def test_fewer_examples_than_parts_leave_some_empty():
    assert list(by_confidence({"a": -1.0}, TERCILES).values()) == [[], [], ["a"]]


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.sampled_from([-3.0, -2.0, -1.0]), min_size=1))
def test_halves_are_those_of_the_recipe(confidence):
    ids = list(confidence)
    is_confident = split_by_confidence(torch.tensor(list(confidence.values())), ids)
    found = by_confidence(confidence, HALVES)
    assert set(found["confident"]) == {i for i, confident in zip(ids, is_confident.tolist(), strict=True) if confident}
    assert sorted(i for part in found.values() for i in part) == sorted(ids)
