"""Section 3.1 and Step 1: perplexity, confidence over checkpoints, the split."""

import math

import pytest
import torch

from sftmix.functional.confidence import confidence, perplexity, split_by_confidence, sum_by_example, variability
from sftmix.functional.equations import LMHead, token_nll


def test_perplexity_is_the_exponential_of_nats_per_token():
    nll = torch.tensor([math.log(8.0), 0.0, 3 * math.log(2.0)], dtype=torch.float64)
    assert perplexity(nll, torch.tensor([1, 5, 3])).tolist() == pytest.approx([8.0, 1.0, 2.0])


def test_a_response_without_tokens_has_no_perplexity():
    with pytest.raises(ValueError, match="without tokens: 1"):
        perplexity(torch.zeros(2), torch.tensor([3, 0]))


def test_token_nll_agrees_with_torch():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(7, 5).double(), torch.randn(11, 5).double(), torch.randint(11, (7,))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    torch.testing.assert_close(token_nll(hidden, LMHead(weight), labels), expected, rtol=1e-12, atol=1e-12)


def test_a_bias_a_scale_and_a_soft_cap_reach_the_logits():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(3, 4).double(), torch.randn(6, 4).double(), torch.randn(6).double()
    raw = hidden @ weight.T * 0.5 + bias
    labels = torch.tensor([0, 5, 2])
    expected = torch.nn.functional.cross_entropy(2.0 * torch.tanh(raw / 2.0), labels, reduction="none")
    torch.testing.assert_close(token_nll(hidden, LMHead(weight, bias, 0.5, 2.0), labels), expected)


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


def test_the_split_takes_the_more_confident_half():
    conf = torch.tensor([-5.0, -1.0, -3.0, -2.0])
    assert split_by_confidence(conf, list("abcd")).tolist() == [False, True, False, True]


def test_the_unconfident_half_gets_the_odd_example():
    assert split_by_confidence(torch.tensor([-1.0, -2.0, -3.0]), list("abc")).sum() == 1


def test_ties_go_by_id_whatever_the_order_of_the_rows():
    conf = torch.full((4,), -2.0)
    assert split_by_confidence(conf, ["d", "b", "a", "c"]).tolist() == [False, True, True, False]


def test_a_confidence_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="1 confidences are not numbers"):
        split_by_confidence(torch.tensor([-1.0, math.nan]), ["a", "b"])
    with pytest.raises(ValueError, match="2 confidences for 1 ids"):
        split_by_confidence(torch.tensor([-1.0, -2.0]), ["a"])


def test_an_infinite_perplexity_is_least_confident():
    assert split_by_confidence(torch.tensor([-math.inf, -1e9]), ["a", "b"]).tolist() == [False, True]
