"""LoRA: what is trained and what is not, folders that plain PEFT reads, merging, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GraniteMoeConfig,
    MambaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from adapters import IDS, LORA, SMALL, adapted, logits, model, move
from sftmix.data.collate import MicroBatch
from sftmix.data.layout import BodyInput
from sftmix.errors import InputError
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import (
    adapters_in_words,
    add_lora,
    exact_in_bfloat16,
    hold_in_bfloat16,
    merge,
    save_adapter,
)
from sftmix.training.optim import OptimizerSettings, adamw

pytestmark = pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's


def test_untrained_adapters_change_nothing_and_leave_the_head_out():
    causal_lm = adapted()
    assert torch.equal(logits(causal_lm), logits(model()))
    names = {name.rsplit(".", 1)[-1] for name, m in causal_lm.named_modules() if hasattr(m, "lora_A")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    trained = {name for name, p in causal_lm.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in causal_lm.named_parameters() if ".lora_" in name}
    assert {p.dtype for p in causal_lm.parameters() if p.requires_grad} == {torch.float32}
    assert adapted(target_modules=["q_proj"]).model.layers[0].mlp.up_proj.__class__ is torch.nn.Linear


def test_a_layer_by_hand():
    """W x + (alpha / r) B A x."""
    causal_lm = move(adapted())
    layer = causal_lm.model.layers[0].mlp.up_proj
    x = torch.randn(3, 32)
    a, b, w = (layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight)
    assert a.shape == (4, 32)
    torch.testing.assert_close(layer(x), x @ w.T + 2.0 * (x @ a.T @ b.T))


def test_the_same_seed_gives_the_same_adapters_and_the_global_generator_stays():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = adapted()
    assert torch.equal(torch.rand(3), expected), "the global generator is where it was"
    again, other = adapted(), adapted(seed=4)
    weights = [{n: p for n, p in m.named_parameters() if "lora_A" in n} for m in (first, again, other)]
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())
    assert not any(torch.equal(p, weights[2][name]) for name, p in weights[0].items())


def micro_batch(lm, *, mu=0.4, dtype=torch.float64):
    """Two responses of three and two tokens that meet over two."""
    ids = torch.tensor([[5, 9, 2, 7, 7], [3, 8, 30, 300, 11]])
    rows, labels = torch.tensor([1, 2, 6, 7, 3]), torch.tensor([2, 7, 30, 300, 7])
    lam = torch.tensor([0.7, 0.7], dtype=dtype)
    weights = torch.ones(5, dtype=dtype)
    batch = MicroBatch((BodyInput(ids, None),), rows, labels, weights, torch.tensor([0, 0, 1, 1, 0]), lam, 2)
    loss = lm(batch, LossSettings(mu=mu), num_tokens=5, num_mixed=2)
    return loss.loss, ids, rows, labels, lam


def test_the_frozen_weights_get_no_gradient_and_stay_the_same_bits():
    lm = SFTMixLM(adapted(dropout=0.1))
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    optimizer = adamw(lm, OptimizerSettings(lr=0.1))
    for _ in range(3):
        optimizer.zero_grad()
        micro_batch(lm.train(), dtype=torch.float32)[0].backward()
        optimizer.step()
    for name, p in lm.named_parameters():
        if ".lora_" in name:
            assert not torch.equal(p, before[name]), name
        else:
            assert p.grad is None, name
            assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("family", ["llama, tied", "llama, untied"])
def test_the_gradients_of_adapters_are_those_of_the_dense_equations(family):
    """The paper's formulas over one-hot labels, in float64; the frozen head gets no dW."""
    lm = SFTMixLM(move(adapted(family)).double())
    loss, ids, rows, labels, lam = micro_batch(lm)
    loss.backward()
    assert lm.causal_lm.lm_head.weight.grad is None
    fused = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    states = lm.causal_lm.model(input_ids=ids).last_hidden_state.flatten(0, 1)[rows]
    onehot, head = F.one_hot(labels, 400).double(), lm.causal_lm.lm_head.weight.T
    z = lam[:, None] * states[:2] + (1 - lam[:, None]) * states[2:4]
    y = lam[:, None] * onehot[:2] + (1 - lam[:, None]) * onehot[2:4]
    ntp, mixup = (-(t * torch.log_softmax(h @ head, -1)).sum() for h, t in ((states, onehot), (z, y)))
    dense = (ntp + 0.4 * mixup) / 5
    dense.backward()
    assert loss.item() == pytest.approx(dense.item(), rel=1e-12)
    assert fused
    for name, p in lm.named_parameters():
        if p.requires_grad:
            assert fused[name].abs().max() > 1e-6, "a gradient that is nothing would agree with anything"
            torch.testing.assert_close(fused[name], p.grad, rtol=1e-9, atol=1e-12)


def test_a_frozen_head_spares_a_matmul(products_counter):
    def products(causal_lm):
        lm = SFTMixLM(causal_lm)
        with torch.no_grad():
            states = lm.hidden([(IDS, None)], torch.arange(8))
        states.requires_grad_()
        lm.hidden = lambda *_: states
        with products_counter() as counter:
            positions = torch.arange(8)
            batch = MicroBatch((), positions, positions, torch.ones(8), positions, torch.ones(2), 8)
            lm(batch, LossSettings(mu=1.0), num_tokens=8, num_mixed=2).loss.backward()
        return counter.count

    assert (products(model()), products(adapted())) == (3, 2)


def test_frozen_weights_in_bfloat16_are_the_same_to_autocast():
    rounded = model()
    for p in rounded.parameters():
        p.data = p.data.bfloat16().float()
    apart = move(add_lora(rounded, **LORA))
    up = apart.model.layers[0].mlp.up_proj.base_layer.weight
    up.data[0, 0] = 1 + 2**-20
    with torch.autocast("cpu", torch.bfloat16):
        expected = logits(apart)
    hold_in_bfloat16(apart, exact_in_bfloat16(apart))
    assert apart.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16
    assert up.dtype == torch.float32, "bfloat16 would lose a part of it"
    assert apart.lm_head.weight.dtype == torch.float32
    assert {p.dtype for p in apart.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(apart), expected)


def test_a_model_without_adapters_is_not_held_in_bfloat16():
    whole = model()
    assert exact_in_bfloat16(whole) == []
    hold_in_bfloat16(whole, exact_in_bfloat16(whole))
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_proj", "lm_head"], "lm_head is the head, which takes no adapter"),
        (
            ["q_prj"],
            "q_prj is not a linear layer of model family llama, which has q_proj, k_proj, v_proj, o_proj, gate",
        ),
        (["embed_tokens"], "embed_tokens is not a linear layer"),
        (["self_attn"], "self_attn is not a linear layer"),
    ],
)
def test_names_that_take_no_adapter_are_refused(targets, says):
    with pytest.raises(InputError, match=says) as error:
        adapted(target_modules=targets)
    assert "\n" not in str(error.value)


def test_a_family_that_peft_refuses_is_one_line():
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(InputError, match=r"model\.lora: model family mamba cannot") as error:
        add_lora(AutoModelForCausalLM.from_config(config), **LORA)
    assert "\n" not in str(error.value)


EXPERTS = {
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2),
}


@pytest.mark.parametrize("family", EXPERTS)
def test_dropout_on_adapters_of_experts_is_refused_with_the_cure_which_works(family, tiny_tokenizer, tmp_path):
    def base():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(EXPERTS[family], dtype=torch.float32).eval()

    with pytest.raises(InputError, match=rf"model\.lora\.dropout=0\.1: model family {family} has .* set .*dropout=0$"):
        add_lora(base(), **{**LORA, "dropout": 0.1})
    apart = move(add_lora(base(), **LORA))
    assert "adapters on 14 of " in adapters_in_words(apart), "experts of two layers too, as two weights a layer"
    save_adapter(apart, tiny_tokenizer, tmp_path)
    merged = merge(base(), tmp_path)
    assert not torch.allclose(logits(merged), logits(base()), atol=1e-3)
    torch.testing.assert_close(logits(merged), logits(apart), rtol=1e-4, atol=1e-5)


def test_what_carries_adapters_is_counted_by_hand():
    """Llama, tied: 400 x 32 embeddings; a layer has 2 x 32 x 32 + 2 x 16 x 32 of attention and 3 x 32 x 48."""
    frozen = 400 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48) + 5 * 32
    trained = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 80)
    total = frozen + trained
    assert adapters_in_words(adapted()) == (
        f"adapters on 14 of 20 weights, {trained / total:.2%} of the parameters trained; without adapters: "
        f"model.embed_tokens.weight ({12800 / total:.1%}), 5 biases and norms"
    )


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (
            GptOssConfig(**SMALL, head_dim=8, num_local_experts=4),
            (
                "model.layers.*.mlp.experts.gate_up_proj (",
                "model.layers.*.mlp.experts.down_proj (",
                "mlp.router.weight (",
            ),
        ),
        (
            GraniteMoeConfig(**SMALL, num_local_experts=4),
            ("model.layers.*.block_sparse_moe.experts.gate_up_proj (", "block_sparse_moe.experts.down_proj ("),
        ),
    ],
    ids=["gpt-oss", "granite-moe"],
)
def test_experts_without_adapters_are_named(config, names):
    words = adapters_in_words(add_lora(AutoModelForCausalLM.from_config(config), **LORA))
    assert words.startswith("adapters on 8 of ")
    assert all(name in words.partition("without adapters: ")[2] for name in names)
    some = adapters_in_words(adapted(target_modules=["q_proj"]))
    assert "model.layers.*.self_attn.k_proj.weight (" in some
    assert "model.layers.*.self_attn.q_proj" not in some
