"""A language model taken apart: hidden states, the head of several families, scores against the model's own loss."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, LlamaConfig

from sftmix.errors import InputError
from sftmix.functional.head import logits
from sftmix.models.language_model import SFTMixLM

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**SMALL),
    "gemma-2, soft cap": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=1.5, attn_implementation="eager"),
    "granite, logits divided": GraniteConfig(**SMALL, logits_scaling=8.0),
    "cohere, logits scaled": CohereConfig(**SMALL, logit_scale=0.25),
    "gpt-2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_head_and_hidden_states_give_the_models_own_logits(config):
    model = build(config)
    lm = SFTMixLM(model)
    ids = torch.randint(3, 64, (2, 7))
    rows = torch.tensor([0, 3, 9, 13])
    with torch.no_grad():
        own = model(input_ids=ids).logits.flatten(0, 1)[rows]
        ours = logits(lm.hidden(ids, torch.ones_like(ids), rows), lm.head)
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_the_score_of_a_response_is_the_models_own_loss(config):
    model = build(config)
    ids = torch.randint(3, 64, (2, 8))
    mask = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
    labels = ids.clone()
    labels[0, :3], labels[1, :2], labels[1, 6:] = -100, -100, -100
    rows = torch.tensor([2, 3, 4, 5, 6, 9, 10, 11, 12])
    targets = torch.cat([ids[0, 3:], ids[1, 2:6]])
    example = torch.tensor([0] * 5 + [1] * 4)
    nll = SFTMixLM(model).response_nll(ids, mask, rows, targets, example)
    own = [
        model(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1], labels=labels[i : i + 1]).loss for i in (0, 1)
    ]
    assert nll.dtype == torch.float64
    assert nll[0].item() == pytest.approx(own[0].item() * 5, rel=1e-5)
    assert nll[1].item() == pytest.approx(own[1].item() * 4, rel=1e-5)


def test_a_head_that_does_more_than_is_known_is_refused():
    model = build(FAMILIES["llama, untied"])
    plain = model.forward

    def forward(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    model.forward = forward
    with pytest.raises(InputError, match="model family llama: its logits are not head"):
        SFTMixLM(model)
