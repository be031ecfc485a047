"""Repetition in answers, by hand."""

from sftmix.evaluation.offline.repetition import distinct, repetition


def test_distinct_counts_over_all_texts_together():
    texts = ["a b a b", "a b"]  # unigrams: 6, of them 2 different; bigrams: ab ba ab ab, of them 2 different
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4


def test_repetition_is_the_share_of_ngrams_that_were_there_before():
    assert repetition("one two three four five") == 0.0
    assert repetition("a b c d a b c d") == 1 - 4 / 5
    assert repetition("a a a a a a") == 1 - 1 / 3


def test_a_text_that_is_too_short_to_repeat_itself_has_no_figure():
    assert repetition("a b c") is None
    assert repetition("") is None
    assert distinct([], 1) is None
    assert distinct(["one", ""], 2) is None
