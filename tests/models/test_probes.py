"""The difference of the logits of two models, and the warning about it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sftmix.models.probes import logits_error, probe_ids, warn_if_logits_differ

SMALL = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
)


def test_probe_ids_are_spread_over_the_vocabulary():
    ids = probe_ids(LlamaForCausalLM(SMALL))
    assert ids[0] == 0
    assert ids[-1] == 63
    assert len(set(ids.tolist())) == len(ids) == 32


def test_the_difference_of_logits_by_hand():
    """Deviations from the mean at each position: (-1, 1) and (-2, 2); the difference is (0, 0) and (-0.1, 0.1)."""
    expected, got = torch.tensor([[0.0, 2.0], [0.0, 4.0]]), torch.tensor([[7.0, 9.0], [0.0, 4.2]])
    assert logits_error(got, expected) == pytest.approx((0.02 / 10) ** 0.5)
    assert logits_error(expected, expected) == 0
    assert logits_error(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    assert logits_error(got * float("nan"), expected) != logits_error(got, expected)


def test_rounding_prints_no_warning_and_other_logits_print_one(capsys):
    """One logit that is far off, as bfloat16 gives, is within rounding: 0.2 of the largest one, 0.02 of the norm."""
    torch.manual_seed(0)
    causal_lm = LlamaForCausalLM(SMALL).eval()
    ids = probe_ids(causal_lm)[None]
    with torch.no_grad():
        expected = causal_lm(input_ids=ids).logits[0]
        rounded = causal_lm.bfloat16()(input_ids=ids).logits[0].float()
    outlier = expected.clone()
    outlier[3, 7] += 0.2 * expected.abs().max()
    for got in (rounded, outlier):
        warn_if_logits_differ(got, expected, "model", is_rounded=True)
    assert capsys.readouterr().out == ""
    for got, is_rounded in ((rounded, False), (expected.roll(1, 0), True), (expected * float("nan"), True)):
        warn_if_logits_differ(got, expected, "model", is_rounded=is_rounded)
        assert "warning     model: its logits differ by" in capsys.readouterr().out


def test_logits_that_are_all_zero_print_no_warning(capsys):
    warn_if_logits_differ(torch.zeros(2, 3), torch.zeros(2, 3), "model", is_rounded=False)
    assert capsys.readouterr().out == ""
