"""Weights in 4 bits under adapters: the numbers, the layer, merging, and what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, MixtralConfig

from adapters import FAMILIES, IDS, LORA, SMALL, adapted, logits, model, move
from sftmix.errors import InputError
from sftmix.estimate.memory import quantized_bytes
from sftmix.models import quantization
from sftmix.models.lora import (
    QUANTIZATION,
    adapters_in_words,
    add_lora,
    exact_in_bfloat16,
    load_adapter,
    merge,
    save_adapter,
)
from sftmix.models.probes import logits_error

pytest.importorskip("bitsandbytes")
from sftmix.models.quantization import (
    SETTINGS,
    QuantizedLinear,
    dequantized,
    parameter_sizes,
    quantization_of,
    quantize,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's
# Dettmers et al. 2023, appendix E, to four decimals
NUMBERS = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0]
NUMBERS += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]


def quantized(family="llama, tied", **changes):
    return add_lora(quantize(model(family)), **{**LORA, **changes})


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer


def test_a_weight_of_the_papers_numbers_is_kept():
    weight = 0.5 * torch.tensor(NUMBERS).repeat(2, 4)
    torch.testing.assert_close(QuantizedLinear(linear(weight)).dequantized().float(), weight, rtol=4e-3, atol=1e-4)


def test_a_value_becomes_the_nearest_number_times_the_scale_of_its_block():
    """Without double quantization the scale is the largest value; with it, within a percent."""
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1, keepdim=True)
    nearest = (weight[..., None] / scale[..., None] - torch.tensor(NUMBERS)).abs().argmin(-1)
    expected = torch.tensor(NUMBERS)[nearest] * scale
    got = QuantizedLinear(linear(weight)).dequantized().float()
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=1e-4)
    assert (got - weight).norm() / weight.norm() == pytest.approx(0.09, abs=0.02)


@pytest.mark.filterwarnings("ignore:.*torch_dtype.*")
def test_the_weights_are_those_of_transformers(tmp_path):
    from bitsandbytes.functional import dequantize_4bit
    from transformers import BitsAndBytesConfig

    model("llama, untied").save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**{k: v for k, v in SETTINGS.items() if k != "quant_method"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    ours = {n: m for n, m in quantize(model("llama, untied")).named_modules() if isinstance(m, QuantizedLinear)}
    assert len(ours) == 14
    for name, layer in ours.items():
        weight = theirs.get_submodule(name).weight
        assert torch.equal(weight.data, layer.weight)
        assert torch.equal(dequantize_4bit(weight.data, weight.quant_state).bfloat16(), layer.dequantized())
    assert type(theirs.lm_head) is nn.Linear


@pytest.mark.parametrize("family", ["llama, tied", "qwen-2, with biases", "gemma-2, soft cap"])
def test_every_linear_layer_but_the_head_is_quantized(family):
    causal_lm, plain = quantize(model(family)), model(family)
    linear = {n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    assert {n for n, m in causal_lm.named_modules() if isinstance(m, QuantizedLinear)} == linear
    assert quantization_of(causal_lm) == "nf4"
    assert quantization_of(plain) is None
    assert sum(size for _, size in parameter_sizes(causal_lm)) == sum(p.numel() for p in plain.parameters())
    for name, weight in plain.named_parameters():
        if name.removesuffix(".weight") not in linear:
            assert torch.equal(causal_lm.get_parameter(name), weight), name


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("family", ["llama, tied", "qwen-2, with biases"])
def test_a_quantized_model_is_the_model_of_its_dequantized_weights(family, autocast):
    """Logits and gradients of the adapters are those of linear layers of torch."""
    models = move(quantized(family)), move(add_lora(dequantized(model(family)), **LORA))
    found, gradients = [], []
    for causal_lm in models:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = causal_lm.train()(input_ids=IDS).logits
        out.float().square().mean().backward()
        found.append(out.detach().float())
        gradients.append({n: p.grad for n, p in causal_lm.named_parameters() if p.grad is not None})
    tolerance = {"rtol": 5e-2, "atol": 5e-2} if autocast else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(*found, **tolerance)
    assert gradients[0].keys() == gradients[1].keys() == {n for n, _ in models[0].named_parameters() if ".lora_" in n}
    for name, gradient in gradients[0].items():
        assert logits_error(gradient, gradients[1][name]) < (5e-2 if autocast else 1e-4), name
    assert logits_error(found[0], logits(move(adapted(family)))) > 1e-2, "of the original weights"


def test_no_copy_of_a_weight_is_kept_for_the_backward_pass():
    layer = QuantizedLinear(nn.Linear(256, 256))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.ones(2, 256, requires_grad=True)).sum().backward()
    assert sum(kept) < 256 * 256


def test_the_packed_weights_stay_what_they_are():
    """They are not floating point; casting them would destroy them."""
    causal_lm = quantized("qwen-2, with biases")
    assert not [name for name in exact_in_bfloat16(causal_lm) if name.endswith((".weight", ".scales"))]
    trained = {n for n, p in causal_lm.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert {p.dtype for p in causal_lm.parameters() if p.requires_grad} == {torch.float32}


def test_the_words_for_the_adapters_do_not_depend_on_the_quantization():
    assert adapters_in_words(quantized()) == adapters_in_words(adapted())


def test_the_bytes_are_those_of_the_arithmetic():
    layer = QuantizedLinear(nn.Linear(512, 320, bias=False))
    held = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
    codes = layer.codes.numel() * 4
    assert held - codes - 4 == quantized_bytes(512 * 320)


def test_another_rank_builds_the_same_layers_without_weights():
    family = "llama, untied"
    causal_lm, empty = quantized(family), add_lora(quantize(model(family).to("meta")), **LORA)
    for mine, other in zip(
        (*causal_lm.parameters(), *causal_lm.buffers()), (*empty.parameters(), *empty.buffers()), strict=True
    ):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)


def test_adapters_are_merged_into_the_dequantized_weights(tiny_tokenizer, tmp_path):
    tuned = move(quantized())
    save_adapter(tuned, tiny_tokenizer, tmp_path)
    assert json.loads((tmp_path / QUANTIZATION).read_text()) == SETTINGS
    assert all(".lora_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    merged = merge(model(), tmp_path)
    assert quantization_of(merged) is None
    assert logits_error(logits(merged), logits(tuned)) < 1e-5
    (tmp_path / QUANTIZATION).unlink()
    assert logits_error(logits(merge(model(), tmp_path)), logits(tuned)) > 1e-2, "into the original weights"


def test_a_saved_adapter_is_loaded_with_the_quantized_base(tiny_tokenizer, tmp_path):
    tuned = move(quantized())
    save_adapter(tuned, tiny_tokenizer, tmp_path)
    again = load_adapter(model(), tmp_path)
    assert quantization_of(again) == "nf4"
    assert torch.equal(logits(again), logits(tuned))


def test_another_quantization_of_a_base_is_refused(tiny_tokenizer, tmp_path):
    save_adapter(quantized(), tiny_tokenizer, tmp_path)
    (tmp_path / QUANTIZATION).write_text(json.dumps({**SETTINGS, "bnb_4bit_quant_type": "fp4"}))
    with pytest.raises(InputError, match=r"quantization_config\.json in it is .*fp4.*, expected .*nf4"):
        load_adapter(model(), tmp_path)


@pytest.mark.parametrize(
    ("causal_lm", "says"),
    [
        (lambda: GPT2LMHeadModel(FAMILIES["gpt-2, transposed weights"]), "family gpt2 .*transformer.h.0.attn.c_attn"),
        (
            lambda: AutoModelForCausalLM.from_config(MixtralConfig(**SMALL, num_local_experts=2)),
            "family mixtral .*experts",
        ),
    ],
)
def test_a_family_whose_weights_are_not_in_linear_layers_is_refused(causal_lm, says):
    with torch.device("meta"):
        empty = causal_lm()
    with pytest.raises(InputError, match=rf"model\.quantization=nf4: model {says}.*set model\.quantization=null"):
        quantize(empty)


def test_bitsandbytes_is_imported_without_code_of_the_hub(monkeypatch):
    kernels = SimpleNamespace(get_kernel=lambda *_: "code of the hub")
    monkeypatch.setattr(quantization, "find_spec", lambda _: True)

    def load(name):
        if name == "kernels":
            return kernels
        with pytest.raises(ImportError, match="code of the hub is not run"):
            kernels.get_kernel("kernels-community/any", version=1)
        return name

    monkeypatch.setattr(quantization.importlib, "import_module", load)
    assert quantization.import_bitsandbytes.__wrapped__() == "bitsandbytes.functional"
    assert kernels.get_kernel() == "code of the hub"
