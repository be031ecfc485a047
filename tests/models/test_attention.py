"""Attention over packed sequences: torch_varlen against transformers' own sdpa, and the choice of an implementation."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sftmix.data.layout import BodyInput, lay_out
from sftmix.errors import InputError
from sftmix.models import attention
from sftmix.models.attention import VARLEN, varlen_attention, why_unusable
from sftmix.models.language_model import SFTMixLM

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WINDOW = {"sliding_window": 4, "use_sliding_window": True}
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "mistral with a window": MistralConfig(**SMALL, sliding_window=4),
    "qwen2 with windows in its upper layer": Qwen2Config(**SMALL, **WINDOW, max_window_layers=1),
    "gemma3 with windows in every other layer": Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
}
SEQUENCES = [list(range(3, 14)), [9, 8, 7], list(range(40, 20, -2)), [5]]


def language_model(config):
    torch.manual_seed(0)
    return SFTMixLM(AutoModelForCausalLM.from_config(config).eval())


def hidden_and_gradient(lm, layout):
    inputs, starts = lay_out(SEQUENCES, layout, pad_token_id=0)
    positions = torch.cat([torch.arange(s, s + len(ids)) for s, ids in zip(starts, SEQUENCES, strict=True)])
    hidden = lm.hidden(inputs, positions)
    weights = [p for p in lm.body.parameters() if p.requires_grad]
    return hidden.detach(), torch.autograd.grad(hidden.square().sum(), weights)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_torch_varlen_is_sdpa_forward_and_backward(family, layout):
    lm = language_model(FAMILIES[family])
    expected, gradients = hidden_and_gradient(lm, layout)
    lm.use_attention(VARLEN)
    found, of_varlen = hidden_and_gradient(lm, layout)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(of_varlen, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_without_boundaries_packed_sequences_would_see_each_other():
    """The test above can fail: the boundaries reach the attention function."""
    lm = language_model(FAMILIES["llama"])
    expected, _ = hidden_and_gradient(lm, "packed")
    lm.use_attention(VARLEN)
    ((input_ids, position_ids, *_),), _ = lay_out(SEQUENCES, "packed", pad_token_id=0)
    found = lm.hidden([BodyInput(input_ids, position_ids)], torch.arange(input_ids.numel()))
    assert (found - expected).abs().max() > 0.01


def test_a_value_of_another_dimension_is_computed_as_by_sdpa():
    """Families with latent attention have wider queries than values."""
    config = DeepseekV3Config(
        **SMALL | {"num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=2,
        num_experts_per_tok=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    lm = language_model(config)
    expected, _ = hidden_and_gradient(lm, "packed")
    lm.use_attention(VARLEN)
    torch.testing.assert_close(hidden_and_gradient(lm, "packed")[0], expected, rtol=1e-4, atol=1e-5)


def test_what_torch_varlen_cannot_do_is_refused():
    lm = language_model(Gemma2Config(**SMALL, head_dim=8))
    lm.use_attention(VARLEN)
    with pytest.raises(InputError, match=r"trainer\.attention=torch_varlen: the model has a soft cap, choose"):
        hidden_and_gradient(lm, "packed")


def test_an_implementation_is_probed_with_the_dimensions_of_the_model(monkeypatch):
    config = LlamaConfig(**SMALL)
    attention.register_varlen()
    config._attn_implementation = VARLEN
    assert why_unusable(config, torch.device("cpu")) is None

    def ignores_the_boundaries(*arguments, **options):
        return varlen_attention(*arguments, scaling=options["scaling"])

    def fails(*_, **__):
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, VARLEN, ignores_the_boundaries)
    assert "its result differs by" in why_unusable(config, torch.device("cpu"))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, VARLEN, fails)
    assert why_unusable(config, torch.device("cpu")) == "no kernel image is available"
