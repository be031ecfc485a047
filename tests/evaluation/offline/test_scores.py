"""Subsets by confidence and repetition in answers, by hand and against the split of the recipe."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sftmix.evaluation.offline.scores import SUBSETS, TERCILES, by_confidence, distinct, repetition
from sftmix.functional.confidence import split_by_confidence


def test_terciles_by_hand():
    confidence = {"a": -3.0, "b": -1.0, "c": -2.0, "d": -9.0, "e": -1.0, "f": -4.0, "g": -5.0}
    found = by_confidence(confidence, TERCILES)
    assert list(found.values()) == [["b", "e"], ["c", "a"], ["f", "g", "d"]]


def test_fewer_examples_than_subsets_leave_some_empty():
    assert list(by_confidence({"a": -1.0}, TERCILES).values()) == [[], [], ["a"]]


@given(st.dictionaries(st.text("abc", min_size=1, max_size=4), st.sampled_from([-3.0, -2.0, -1.0]), min_size=1))
def test_two_subsets_are_those_of_the_recipe(confidence):
    ids = list(confidence)
    is_confident = split_by_confidence(torch.tensor(list(confidence.values())), ids)
    found = by_confidence(confidence, SUBSETS)
    assert set(found["confident"]) == {i for i, confident in zip(ids, is_confident.tolist(), strict=True) if confident}
    assert sorted(i for part in found.values() for i in part) == sorted(ids)


def test_distinct_counts_over_all_texts_together():
    texts = ["a b a b", "a b"]  # unigrams: 6, of them 2 different; bigrams: ab ba ab ab, of them 2 different
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4


def test_repetition_is_the_share_of_ngrams_that_were_there_before():
    assert repetition("one two three four five") == 0.0
    assert repetition("a b c d a b c d") == 1 - 4 / 5
    assert repetition("a a a a a a") == 1 - 1 / 3


def test_a_text_that_is_too_short_to_repeat_itself_has_no_repetition():
    assert repetition("a b c") is None
    assert repetition("") is None
    assert distinct([], 1) is None
    assert distinct(["one", ""], 2) is None
