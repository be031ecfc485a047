"""Hidden states, heads of several families, and losses against the loss that transformers computes."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    ModernBertDecoderConfig,
    OPTConfig,
    Qwen2Config,
    RecurrentGemmaConfig,
)

from builders import SMALL_CONFIG, random_examples
from sftmix.data.collate import BatchSettings, MicroBatch, collate_step
from sftmix.data.layout import BodyInput
from sftmix.data.pairing import Step
from sftmix.errors import InputError
from sftmix.functional.equations import LossSettings, dense_sftmix_loss, logits
from sftmix.models import language_model
from sftmix.models.language_model import EmbeddingNoise, SFTMixLM
from sftmix.models.loading import load_causal_lm
from sftmix.models.probes import check_packing

FAMILIES = {
    "llama, tied": LlamaConfig(**SMALL_CONFIG, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**SMALL_CONFIG),
    "gemma-2, soft cap": Gemma2Config(
        **SMALL_CONFIG, head_dim=8, final_logit_softcapping=1.5, attn_implementation="eager"
    ),
    "granite, logits divided": GraniteConfig(**SMALL_CONFIG, logits_scaling=8.0),
    "cohere, logits scaled": CohereConfig(**SMALL_CONFIG, logit_scale=0.25),
    "gpt-2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}


BODIES = {  # the body is not where `base_model` is, is deeper than it, or has a head of its own kind
    "llama-4, text": Llama4TextConfig(**SMALL_CONFIG, head_dim=8, intermediate_size_mlp=48, num_local_experts=2),
    "opt": OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
    "recurrent-gemma, soft cap": RecurrentGemmaConfig(
        **{**SMALL_CONFIG, "num_hidden_layers": 3}, lru_width=32, logits_soft_cap=3.0
    ),
    "gpt-neox": GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
    "mixtral": MixtralConfig(**SMALL_CONFIG, num_local_experts=4),
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0),
    "bloom": BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
}


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("config", [*FAMILIES.values(), *BODIES.values()], ids=[*FAMILIES, *BODIES])
def test_head_and_hidden_states_give_the_models_own_logits(config):
    model = build(config)
    lm = SFTMixLM(model)
    ids = torch.randint(3, 64, (2, 7))
    rows = torch.tensor([0, 3, 9, 13])
    with torch.no_grad():
        own = model(input_ids=ids).logits.flatten(0, 1)[rows]
        ours = logits(lm.hidden([(ids, None)], rows), lm.head)
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_the_score_of_a_response_is_the_models_own_loss(config):
    model = build(config)
    ids = torch.randint(3, 64, (2, 8))
    mask = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])  # ours needs none: what is filled up stands on the right
    labels = ids.clone()
    labels[0, :3], labels[1, :2], labels[1, 6:] = -100, -100, -100
    rows = torch.tensor([2, 3, 4, 5, 6, 9, 10, 11, 12])
    targets = torch.cat([ids[0, 3:], ids[1, 2:6]])
    example = torch.tensor([0] * 5 + [1] * 4)
    nll = SFTMixLM(model).response_nll([(ids, None)], rows, targets, example, 2)
    own = [
        model(input_ids=ids[i : i + 1], attention_mask=mask[i : i + 1], labels=labels[i : i + 1]).loss for i in (0, 1)
    ]
    assert nll.dtype == torch.float64
    assert nll[0].item() == pytest.approx(own[0].item() * 5, rel=1e-5)
    assert nll[1].item() == pytest.approx(own[1].item() * 4, rel=1e-5)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_noise_is_what_would_be_added_to_the_embeddings_and_padding_gets_none(config):
    """Against `inputs_embeds` of transformers: an input of one sequence, and one of two sequences with padding."""
    model = build(config)
    lm = SFTMixLM(model)
    inputs = [(torch.randint(3, 64, (1, 4)), None), (torch.randint(3, 64, (2, 6)), None)]
    spans, rows = ((10, 4), (0, 4), (4, 6)), torch.arange(14)
    expected = []
    noises = torch.zeros(16, 32)
    for seed, (start, length) in zip((5, 6, 7), spans, strict=True):
        drawn = torch.empty(length, 32).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
        noises[start : start + length] = 8.0 / (length * 32) ** 0.5 * drawn
    with torch.no_grad():
        for (ids, _), noise in zip(inputs, (noises[:4], noises[4:]), strict=True):
            embedded = model.get_input_embeddings()(ids) + noise.view(*ids.shape, 32)
            expected.append(model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state.flatten(0, 1))
        clean = lm.hidden(inputs, rows)
        noisy = lm.hidden(inputs, rows, EmbeddingNoise(8.0, (5, 6, 7), spans))
        again = lm.hidden(inputs, rows)
    torch.testing.assert_close(noisy, torch.cat(expected)[rows])
    assert ((noisy - clean).abs().amax(1) > 1e-3).all(), "each position has some"
    assert torch.equal(again, clean), "none is left behind"


def test_padding_has_the_embedding_it_has():
    model = build(FAMILIES["llama, tied"])
    seen = []
    model.model.layers[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    inputs, rows = [(torch.randint(3, 64, (2, 6)), None)], torch.arange(12)
    lm = SFTMixLM(model)
    seen.clear()
    for noise in (None, EmbeddingNoise(8.0, (5, 7), ((0, 6), (6, 4)))):
        lm.hidden(inputs, rows, noise)
    moved = (seen[1] - seen[0]).abs().amax(-1)
    assert (moved[:, :4] > 0).all()
    assert moved[0, 4:].min() > 0
    assert moved[1, 4:].tolist() == [0.0, 0.0]
    assert moved[0].max() <= 8.0 / (6 * 32) ** 0.5 + 1e-6 < moved[1].max(), "the shorter one has the larger noise"


def test_a_family_that_embeds_elsewhere_is_refused(monkeypatch):
    lm = SFTMixLM(build(FAMILIES["llama, untied"]))
    other = torch.nn.Embedding(4, 4)
    monkeypatch.setattr(lm.causal_lm, "get_input_embeddings", lambda: other)
    with pytest.raises(InputError, match=r"neftune_alpha=8: model family llama embeds its tokens 0 times a forward"):
        lm.hidden([(torch.tensor([[3]]), None)], torch.tensor([0]), EmbeddingNoise(8.0, (1,), ((0, 1),)))


def test_packed_sequences_have_the_hidden_states_of_separate_ones():
    lm = SFTMixLM(build(FAMILIES["llama, untied"]))
    first, second = torch.tensor([[5, 9, 2, 7]]), torch.tensor([[3, 8, 30]])
    packed = BodyInput(torch.cat([first, second], 1), torch.tensor([[0, 1, 2, 3, 0, 1, 2]]))
    with torch.no_grad():
        expected = lm.hidden([(first, None), (second, None)], torch.arange(7))
        got = lm.hidden([packed], torch.arange(7))
        without_positions = lm.hidden([(packed.input_ids, None)], torch.arange(7))
    torch.testing.assert_close(got, expected)
    assert (without_positions - expected)[4:].abs().max() > 1e-2


@pytest.mark.parametrize(("chosen", "other"), [("fused", "dense"), ("dense", "fused")])
def test_the_loss_is_that_of_the_chosen_implementation_with_all_settings(monkeypatch, chosen, other):
    lm = SFTMixLM(build(FAMILIES["gemma-2, soft cap"]))
    positions, labels = torch.tensor([1, 2, 6, 7, 3]), torch.tensor([2, 7, 30, 40, 7])
    inputs, lam = (BodyInput(torch.tensor([[5, 9, 2, 7, 7], [3, 8, 30, 40, 11]]), None),), torch.tensor([0.7, 0.2])
    batch = MicroBatch(inputs, positions, labels, torch.linspace(0, 1, 5), torch.tensor([0, 0, 1, 1, 0]), lam, 2)
    settings = LossSettings(0.4, "mixed_tokens", "full", 0.1, "dft", implementation=chosen)
    counts = {"num_tokens": 9, "num_mixed": 4}
    hidden = lm.hidden(inputs, positions).detach()
    expected = dense_sftmix_loss(hidden, lm.head, labels, batch.weights, lam, settings, **counts)
    monkeypatch.setattr(language_model, f"{other}_sftmix_loss", None)
    seen = []
    got = lm(batch, settings, **counts, observe=lambda *both: seen.append(both))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    ((observed, head),) = seen
    torch.testing.assert_close(observed, hidden)
    assert head == lm.head


@pytest.mark.parametrize(
    "change",
    [
        lambda z: z * 1.5,
        lambda z: z * 1.002,
        lambda z: 200 * torch.tanh(z / 200),
        lambda z: torch.cat([z[..., :1] + 9, z[..., 1:]], -1),
    ],
    ids=["scaled", "scaled a little", "soft cap", "one logit"],
)
@pytest.mark.parametrize("std", [0.3, 0.02])
def test_a_head_that_does_more_than_is_known_is_refused(monkeypatch, change, std):
    """Also at a new model's small logits, where a soft cap changes them by less than 1e-6."""
    model = build(FAMILIES["llama, untied"])
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    SFTMixLM(model)
    plain = model.forward

    def forward(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = change(out.logits)
        return out

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(InputError, match=r"model family llama: its logits are not head.*expected at most 0.001"):
        SFTMixLM(model)


def test_the_check_of_the_head_leaves_no_trace():
    model = build(FAMILIES["gpt-2"]).train()
    before = {name: w.clone() for name, w in model.state_dict().items()}
    SFTMixLM(model)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    assert model.training
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**{k: v for k, v in SMALL_CONFIG.items() if k != "num_key_value_heads"}, is_decoder=True),
        ModernBertDecoderConfig(**{k: v for k, v in SMALL_CONFIG.items() if k != "num_key_value_heads"}),
    ],
    ids=["bert", "modernbert-decoder"],
)
def test_a_family_whose_head_has_layers_is_refused_by_name(config):
    with pytest.raises(InputError, match=f"model family {config.model_type}: its logits are not head"):
        SFTMixLM(build(config))


def test_a_family_that_cannot_be_called_with_tokens_is_one_line(monkeypatch):
    model = build(FAMILIES["llama, untied"])
    monkeypatch.setattr(model.model, "forward", lambda **_: (_ for _ in ()).throw(TypeError("needs\npixels")))
    with pytest.raises(InputError, match=r"model family llama: it cannot be tuned here \(needs\)$"):
        SFTMixLM(model)


def test_the_head_of_falcon_h1_has_a_multiplier():
    config = FalconH1Config(
        **SMALL_CONFIG, head_dim=8, mamba_n_heads=4, mamba_d_head=16, mamba_d_ssm=64, mamba_d_state=8
    )
    config.lm_head_multiplier = 0.5
    lm, ids = SFTMixLM(build(config)), torch.arange(3, 9)
    with torch.no_grad():
        own = lm.causal_lm(input_ids=ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(lm.logits(ids), own, rtol=1e-4, atol=1e-5)


PACKED = {
    "llama": LlamaConfig(**SMALL_CONFIG),
    "mistral, sliding window": MistralConfig(**SMALL_CONFIG, sliding_window=8),
    "gemma-2, soft cap": Gemma2Config(**SMALL_CONFIG, head_dim=8, sliding_window=8, final_logit_softcapping=1.5),
    "gemma-3, sliding window": Gemma3TextConfig(**SMALL_CONFIG, head_dim=8, sliding_window=8),
    "qwen-2": Qwen2Config(**SMALL_CONFIG, tie_word_embeddings=True),
}


def loss_and_gradients(model, layout, attention):
    """A step of 16 sequences of 2 to 40 tokens, in micro-batches, of a model in a layout."""
    lm = SFTMixLM(model.train())
    if attention is not None:
        lm.use_attention(attention)
    encoded = random_examples(
        16, vocab=model.config.vocab_size, first_token=3, prompt=(1, 20), response=(1, 20), seed=0
    )
    step = Step((0, 2, 4, 6, 8, 10), (1, 3, 5, 7, 9, 11), (0.9, 0.1, 0.5, 0.3, 0.7, 0.2), (12, 13, 14, 15))
    batch = collate_step(step, encoded, [1.0] * 16, BatchSettings(layout, 200, pad_token_id=0))
    assert len(batch.micro_batches) > 1
    model.zero_grad()
    total = 0.0
    for micro in batch.micro_batches:
        part = lm(micro, LossSettings(mu=0.2), num_tokens=batch.num_tokens, num_mixed=batch.num_mixed)
        part.loss.backward()
        total += part.loss.item()
    return total, [p.grad.clone() for p in model.parameters()]


def assert_layouts_agree(model, attention):
    model = model.double()
    expected, reference = loss_and_gradients(model, "padded", attention)
    largest = max(g.abs().max().item() for g in reference)
    assert largest > 1e-3
    for layout in ("grouped", "packed"):
        loss, grads = loss_and_gradients(model, layout, attention)
        assert loss == pytest.approx(expected, rel=1e-6)
        for got, want in zip(grads, reference, strict=True):
            assert (got - want).abs().max().item() <= max(1e-6 * want.abs().max().item(), 1e-12 * largest)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", PACKED.values(), ids=PACKED)
def test_layouts_give_the_same_loss_and_gradients(config, attention):
    model = build(config)
    if config.model_type == "gemma2" and attention == "sdpa" and not model._supports_sdpa:
        with pytest.raises(InputError, match="attention=sdpa: model family gemma2 cannot"):
            SFTMixLM(model).use_attention(attention)
        return
    check_packing(SFTMixLM(model))
    assert_layouts_agree(model, attention)


def test_layouts_give_the_same_loss_and_gradients_on_a_real_model(shared):
    assert_layouts_agree(load_causal_lm(str(shared / "models" / "stories260K"), None), None)


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0),
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    ],
    ids=["mamba", "bloom"],
)
def test_a_family_whose_packed_sequences_see_each_other_is_refused_by_name(config):
    lm = SFTMixLM(build(config))
    with pytest.raises(InputError, match=f"model family {config.model_type} packed sequences see each other"):
        check_packing(lm)


def test_a_family_that_takes_no_positions_is_refused_by_name():
    model = build(FAMILIES["llama, untied"])
    lm, plain = SFTMixLM(model), model.model.forward

    def forward(input_ids, use_cache):
        return plain(input_ids=input_ids, use_cache=use_cache)

    model.model.forward = forward
    with pytest.raises(InputError, match=r"trainer\.layout=packed: model family llama cannot"):
        check_packing(lm)


def test_attention_that_a_family_would_ignore_is_refused_by_name():
    model = build(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(InputError, match=r"trainer\.attention=sdpa: model family bloom cannot"):
        SFTMixLM(model).use_attention("sdpa")


def test_attention_that_a_family_has_not_is_refused_by_name():
    with pytest.raises(InputError, match=r"trainer\.attention=flash_attention_2: model family llama cannot"):
        SFTMixLM(build(FAMILIES["llama, untied"])).use_attention("flash_attention_2")


def test_a_step_makes_no_tensor_of_tokens_times_vocabulary(products_counter):
    """Body, loss and backward of 300 tokens at 5,000 words, the head in chunks of 8 rows."""
    vocab = 5000
    lm = SFTMixLM(build(LlamaConfig(**{**SMALL_CONFIG, "vocab_size": vocab}, tie_word_embeddings=True)))
    positions, labels = torch.arange(150, 299), torch.randint(3, vocab, (149,))
    inputs = (BodyInput(torch.randint(3, vocab, (1, 300)), None),)
    batch = MicroBatch(inputs, positions, labels, torch.ones(149), torch.zeros(149).long(), torch.full((60,), 0.3), 1)
    with products_counter() as products:
        lm(batch, LossSettings(mu=0.2, chunk_bytes=1), num_tokens=149, num_mixed=60).loss.backward()
    assert products.largest == vocab * 32 * 4, "the head's own gradient is the largest"
    assert products.largest < len(positions) * vocab * 4 / 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch itself, on its way to compile
def test_compiled_blocks_compute_the_same():
    """To single precision: transformers' norms round to it, and a compiled one elsewhere."""
    model = build(PACKED["llama"]).double()
    expected, reference = loss_and_gradients(model, "grouped", None)
    SFTMixLM(model).compile_blocks()
    loss, grads = loss_and_gradients(model, "grouped", None)
    assert loss == pytest.approx(expected, rel=1e-7)
    largest = max(g.abs().max().item() for g in reference)
    for got, want in zip(grads, reference, strict=True):
        assert (got - want).abs().max().item() <= 1e-6 * largest
