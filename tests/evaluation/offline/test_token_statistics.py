"""The forward loop, against the model's own logits, for any batches and chunks."""

import pytest
import torch
from torch.nn import functional as F

from sftmix.data.encoding import EncodedExample
from sftmix.evaluation.model_pool import ModelPool
from sftmix.evaluation.offline.metrics import linearity_gap
from sftmix.evaluation.offline.token_statistics import Forward, linearity, token_statistics
from sftmix.functional.equations import LMHead
from sftmix.models.tiny import tiny_llama


@pytest.fixture
def causal_lm(tiny_tokenizer):
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
    return tiny_llama(tiny_tokenizer, **shape, seed=0).eval()


@pytest.fixture
def forward(causal_lm, tiny_tokenizer):
    return Forward(ModelPool.holding(causal_lm, tiny_tokenizer), batch_tokens=64, show_progress=False)


@pytest.fixture
def encoded():
    generator = torch.Generator().manual_seed(0)
    lengths = [(3, 9), (2, 4), (5, 20), (1, 3), (4, 30), (2, 12)]
    return [
        EncodedExample(str(k), tuple(torch.randint(3, 300, (length,), generator=generator).tolist()), prompt)
        for k, (prompt, length) in enumerate(lengths)
    ]


def response_logits(causal_lm, example):
    logits = causal_lm(torch.tensor([example.input_ids])).logits[0]
    return logits[example.num_prompt_tokens - 1 : -1], torch.tensor(example.input_ids[example.num_prompt_tokens :])


@torch.no_grad()
def test_the_metrics_are_those_of_the_models_own_logits(forward, causal_lm, encoded):
    found = token_statistics(forward, encoded, "")
    for example in encoded:
        logits, labels = response_logits(causal_lm, example)
        assert found.nll[example.example_id] == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item())
        assert found.num_tokens[example.example_id] == len(labels)
    every = torch.cat([response_logits(causal_lm, example)[0] for example in encoded]).softmax(-1)
    assert found.prediction.top_probability.mean().item() == pytest.approx(every.max(-1).values.mean().item())
    entropy = torch.distributions.Categorical(every).entropy().mean().item()
    assert found.prediction.entropy.mean().item() == pytest.approx(entropy, rel=1e-5)


def test_the_loss_is_a_ratio_of_sums(forward, causal_lm, encoded):
    found = token_statistics(forward, encoded, "")
    assert found.loss(["0", "2"]) == (found.nll["0"] + found.nll["2"]) / (6 + 15)


@torch.no_grad()
def test_the_metrics_of_each_example_are_those_of_its_own_logits(forward, causal_lm, encoded):
    found = token_statistics(forward, encoded, "")
    entropy, is_correct = found.by_example(found.prediction.entropy), found.by_example(found.prediction.is_correct)
    losses = found.by_example(found.prediction.nll)
    for example in encoded:
        logits, labels = response_logits(causal_lm, example)
        one = torch.distributions.Categorical(logits=logits).entropy().mean().item()
        assert entropy[example.example_id] == pytest.approx(one, rel=1e-5)
        hits = (logits.argmax(-1) == labels).double().mean().item()
        assert is_correct[example.example_id] == pytest.approx(hits)
        assert losses[example.example_id] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_batches_and_chunks_change_nothing(forward, causal_lm, encoded):
    one = token_statistics(forward._replace(batch_tokens=1000), encoded, "")
    other = token_statistics(forward._replace(batch_tokens=1, chunk_bytes=1), encoded[::-1], "")
    assert one.nll == pytest.approx(other.nll, rel=1e-5)
    assert one.num_tokens == other.num_tokens
    for mine, theirs in zip(one.prediction, other.prediction, strict=True):
        torch.testing.assert_close(mine.double().mean(), theirs.double().mean(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_pairs_are_mixed_at_the_tokens_that_both_responses_have(forward, causal_lm, encoded):
    pairs, lams = [(encoded[0], encoded[4]), (encoded[5], encoded[1])], (0.3, 0.5)
    found = linearity(forward._replace(batch_tokens=1000), pairs, lams, "")
    assert found.total == 6 + 2
    assert found.num_mixed_tokens == {("0", "4"): 6, ("5", "1"): 2}
    total = torch.zeros(2)
    for pair in pairs:
        states = [causal_lm.base_model(torch.tensor([e.input_ids])).last_hidden_state[0] for e in pair]
        rows = [h[e.num_prompt_tokens - 1 : -1] for h, e in zip(states, pair, strict=True)]
        labels = [torch.tensor(e.input_ids[e.num_prompt_tokens :]) for e in pair]
        n = min(len(row) for row in rows)
        gaps = linearity_gap(
            rows[0][:n], rows[1][:n], LMHead(causal_lm.lm_head.weight), labels[0][:n], labels[1][:n], lams
        )
        ids = pair[0].example_id, pair[1].example_id
        assert found.of_pairs[ids] == pytest.approx(gaps.mean().item(), rel=1e-5)
        total += gaps.sum(dim=1)
    assert list(found.gap.values()) == pytest.approx((total / 8).tolist(), rel=1e-5)
    again = linearity(forward._replace(batch_tokens=1, chunk_bytes=1), pairs, lams, "")
    assert found.gap == pytest.approx(again.gap, rel=1e-5)


def test_pairs_of_equals_have_no_gap(forward, causal_lm, encoded):
    found = linearity(forward, [(e, e) for e in encoded], (0.3,), "")
    assert found.gap[0.3] == pytest.approx(0.0, abs=1e-6)
    assert found.label_entropy[0.3] == 0.0


def test_a_model_in_bfloat16_has_its_logits_in_single_precision(forward, causal_lm, encoded):
    causal_lm.to(torch.bfloat16)
    found = token_statistics(forward, encoded[4:5], "")  # a padded batch would round its states elsewhere
    assert found.prediction.top_probability.dtype == torch.float32
    ids = torch.tensor([encoded[4].input_ids])
    with torch.no_grad():
        states = causal_lm.base_model(ids).last_hidden_state[0, 3:-1].float()
        logprobs = (states @ causal_lm.lm_head.weight.float().T).log_softmax(-1)
    nll = -logprobs.gather(1, ids[0, 4:, None]).sum().item()
    assert found.nll["4"] == pytest.approx(nll, rel=1e-6)
