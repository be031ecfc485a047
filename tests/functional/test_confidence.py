"""Section 3.1 and Step 1: perplexity, confidence over checkpoints, the split."""

import math

import pytest
import torch

from sftmix.functional.confidence import (
    confidence,
    confidence_in_windows,
    perplexity,
    split_by_confidence,
    sum_by_example,
    variability,
)


def test_perplexity_is_the_exponential_of_nats_per_token():
    nll = torch.tensor([math.log(8.0), 0.0, 3 * math.log(2.0)], dtype=torch.float64)
    assert perplexity(nll, torch.tensor([1, 5, 3])).tolist() == pytest.approx([8.0, 1.0, 2.0])


def test_a_response_without_tokens_has_no_perplexity():
    with pytest.raises(ValueError, match="without tokens: 1"):
        perplexity(torch.zeros(2), torch.tensor([3, 0]))


def test_nats_are_summed_by_example_in_double_precision():
    nll = torch.tensor([1.0, 2.0, 4.0, 8.0])
    total = sum_by_example(nll, torch.tensor([1, 0, 1, 3]), 4)
    assert total.dtype == torch.float64
    assert total.tolist() == [2.0, 5.0, 0.0, 8.0]


def test_confidence_is_the_negated_mean_perplexity_over_checkpoints():
    ppl = torch.tensor([[2.0, 10.0], [4.0, 20.0]])
    assert confidence(ppl).tolist() == [-3.0, -15.0]
    assert variability(ppl).tolist() == [1.0, 5.0]
    assert variability(ppl[:1]).tolist() == [0.0, 0.0]


def test_the_confident_subset_is_the_more_confident_half():
    conf = torch.tensor([-5.0, -1.0, -3.0, -2.0])
    assert split_by_confidence(conf, list("abcd")).tolist() == [False, True, False, True]


def test_the_unconfident_subset_has_the_odd_example():
    assert split_by_confidence(torch.tensor([-1.0, -2.0, -3.0]), list("abc")).sum() == 1


def test_ties_are_ordered_by_id_for_any_order_of_the_examples():
    conf = torch.full((4,), -2.0)
    assert split_by_confidence(conf, ["d", "b", "a", "c"]).tolist() == [False, True, True, False]


def test_a_confidence_that_is_nan_is_refused():
    with pytest.raises(ValueError, match="1 confidences are not numbers"):
        split_by_confidence(torch.tensor([-1.0, math.nan]), ["a", "b"])
    with pytest.raises(ValueError, match="2 confidences for 1 ids"):
        split_by_confidence(torch.tensor([-1.0, -2.0]), ["a"])


def test_an_infinite_perplexity_is_the_least_confident():
    assert split_by_confidence(torch.tensor([-math.inf, -1e9]), ["a", "b"]).tolist() == [False, True]


def test_ranks_within_windows_compare_only_examples_of_the_same_window():
    falling = torch.tensor([90.0, 70.0, 80.0, 60.0, 9.0, 7.0, 8.0, 6.0])  # as the perplexities of a model that learns
    found = confidence_in_windows(falling, list("abcdefgh"), 4)
    assert found.tolist() == [1 / 8, 5 / 8, 3 / 8, 7 / 8] * 2
    assert split_by_confidence(found, list("abcdefgh")).tolist() == [False, True, False, True] * 2


def test_equal_perplexities_of_a_window_are_ordered_by_id():
    assert confidence_in_windows(torch.ones(3), ["b", "c", "a"], 3).tolist() == pytest.approx([1 / 2, 1 / 6, 5 / 6])


def test_windows_have_equal_sizes_up_to_one_and_at_least_the_given_one():
    found = confidence_in_windows(torch.arange(11.0), [f"{i:02d}" for i in range(11)], 3)
    tops = [k for k in range(11) if k == 0 or found[k] > found[k - 1]]
    assert tops == [0, 3, 7]
    assert confidence_in_windows(torch.arange(2.0), ["a", "b"], 128).tolist() == [0.75, 0.25]
    assert confidence_in_windows(torch.ones(0), [], 128).tolist() == []
