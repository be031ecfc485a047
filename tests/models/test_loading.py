"""Models and tokenizers from folders: what is wrong with a folder is one line."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    Llama4Config,
    LlamaConfig,
    MixtralConfig,
)

from builders import SMALL_CONFIG, TINY_LLAMA, save_tiny_llama
from sftmix.data.encoding import Encoder
from sftmix.data.templates import set_template, template_source
from sftmix.errors import InputError
from sftmix.models.export import export
from sftmix.models.loading import check_weights, load_causal_lm, precision
from sftmix.models.tiny import tiny_llama
from sftmix.models.tokenizer import load_tokenizer


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    return save_tiny_llama(tiny_tokenizer, tmp_path / "model")


def test_the_embedded_model_is_the_same_for_the_same_seed(tiny_tokenizer):
    import torch

    first, again = tiny_llama(tiny_tokenizer, **TINY_LLAMA), tiny_llama(tiny_tokenizer, **TINY_LLAMA)
    other = tiny_llama(tiny_tokenizer, **{**TINY_LLAMA, "seed": 1})
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_folder_loads_with_plain_transformers(tiny_tokenizer, tmp_path, dtype):
    import torch

    from sftmix.models.export import DTYPES

    model = tiny_llama(tiny_tokenizer, **TINY_LLAMA)
    tiny_tokenizer.chat_template = "{{ messages }}{{ eos_token }}"
    export(model, tiny_tokenizer, tmp_path / "out", dtype, 1)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert back.dtype == DTYPES[dtype]
    assert model.dtype == torch.float32, "the model in memory keeps its precision"
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys(), "tied weights are written once"  # noqa: SIM118
    expected = {name: tensor.to(DTYPES[dtype]) for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    assert (back.generation_config.eos_token_id, back.generation_config.pad_token_id) == (1, 2)


def test_a_model_that_the_hub_does_not_provide_is_one_line_with_the_remedy(monkeypatch):
    def fail(*_, **__):
        raise OSError("We couldn't connect to the hub\nsecond line")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        InputError, match=r"model org/name: .*connect.*hf auth login.*model=local model\.path="
    ) as error:
        load_tokenizer("org/name", "main", None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("known", [None, 1, [1, 2]])
def test_an_exported_folder_stops_at_the_end_of_turn_that_was_trained(tiny_tokenizer, tmp_path, known):
    """Plain transformers stops there, and the tokenizer names the same token."""
    import torch

    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    set_template(tiny_tokenizer, template_source("chatml"))
    end = Encoder(tiny_tokenizer, 64, "error").end_token_id
    model = tiny_llama(tiny_tokenizer, **TINY_LLAMA)
    model.generation_config.eos_token_id = known
    with torch.no_grad():  # the embeddings are tied: the likeliest next token becomes the end of turn
        likeliest = int(model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].argmax())
        model.model.embed_tokens.weight[end] = 2 * model.model.embed_tokens.weight[likeliest]
    export(model, tiny_tokenizer, tmp_path / "out", "float32", end)
    back, tokenizer = (c.from_pretrained(tmp_path / "out") for c in (AutoModelForCausalLM, AutoTokenizer))
    ends = {None: end, 1: [1, end], (1, 2): [1, 2, end]}[tuple(known) if isinstance(known, list) else known]
    assert back.generation_config.eos_token_id == ends
    assert end != likeliest
    assert tokenizer.eos_token == "<|im_end|>"
    out = back.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False)
    assert out[0, 3:].tolist() == [end]


LLAMA, TIED = LlamaConfig(**SMALL_CONFIG), LlamaConfig(**SMALL_CONFIG, tie_word_embeddings=True)
GPT2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)


@pytest.fixture
def saved(tmp_path):
    """A function that saves a small model of a config, changes its weights and its config, and returns its folder."""

    def save(config, change=lambda weights: weights, **config_changes):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
        file, config_file = tmp_path / "model.safetensors", tmp_path / "config.json"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
        config_file.write_text(json.dumps({**json.loads(config_file.read_text()), **config_changes}))
        return str(tmp_path)

    return save


def without(*names):
    return lambda weights: {n: w for n, w in weights.items() if not any(part in n for part in names)}


def with_prefix(prefix):
    return lambda weights: {prefix + n: w for n, w in weights.items()}


def adding(**weights):
    return lambda before: {**before, **{n.replace("__", "."): w for n, w in weights.items()}}


HEAD = r"1 weight is missing \(lm_head\.weight\); .*, or set tie_word_embeddings=true"
WRAPPED = (
    r"21 weights are missing \(lm_head.*, \.\.\.\); 21 weights are unexpected .*names begin with `%s`: save the model"
)


@pytest.mark.parametrize(
    ("config", "change", "config_changes", "says"),
    [
        (LLAMA, without("lm_head"), {}, HEAD),
        (TIED, lambda w: w, {"tie_word_embeddings": False}, HEAD),
        (LLAMA, with_prefix("_orig_mod."), {}, WRAPPED % r"_orig_mod\."),
        (LLAMA, with_prefix("module."), {}, WRAPPED % r"module\."),
        (LLAMA, with_prefix("base_model.model."), {}, WRAPPED % r"base_model\.model\."),
        (
            LLAMA,
            without("layers.1."),
            {},
            r"9 weights are missing \(model\.layers\.1\.input_layernorm\.weight, .*, \.\.\.\)",
        ),
        (
            LLAMA,
            without("layers.0.mlp.up_proj"),
            {},
            r"1 weight is missing \(model\.layers\.0\.mlp\.up_proj\.weight\); exp",
        ),
        (LLAMA, lambda w: w, {"num_hidden_layers": 3}, r"9 weights are missing \(model\.layers\.2\."),
        (LLAMA, lambda w: w, {"num_hidden_layers": 1}, r"9 weights are unexpected \(model\.layers\.1\."),
        (TIED, adding(score__weight=torch.ones(2, 32)), {}, r"1 weight is unexpected \(score\.weight\)"),
        (TIED, adding(v_head__summary__weight=torch.ones(1, 32)), {}, r"1 weight is unexpected \(v_head\.summary"),
        (TIED, without("embed_tokens"), {}, r"missing \(lm_head\.weight, model\.embed_tokens\.weight\)"),
        (
            LLAMA,
            adding(model__embed_tokens__weight=torch.ones(70, 32)),
            {},
            r"1 weight is of another shape \(model\.embed_tokens\.weight is \[70, 32\], expected \[64, 32\]\)",
        ),
        (
            LLAMA,
            lambda w: w,
            {"vocab_size": 72},
            r"2 weights are of another shape \(lm_head\.weight is \[64, 32\], exp",
        ),
        (
            MixtralConfig(**SMALL_CONFIG, num_local_experts=4),
            without("0.block_sparse_moe.experts.2.w1"),
            {},
            "1 weight is missing",
        ),
        (
            MixtralConfig(**SMALL_CONFIG, num_local_experts=4),
            without("experts.3."),
            {},
            r"experts\.down_proj is \[3, 32",
        ),
        (GPT2, without("wte"), {}, r"missing \(lm_head\.weight, transformer\.wte\.weight\)"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_one_line(saved, config, change, config_changes, says):
    folder = saved(config, change, **config_changes)
    for read in (load_causal_lm, check_weights):
        with pytest.raises(InputError, match=says) as error:
            read(folder, None)
        assert str(error.value).startswith(f"model folder {folder}: ")
        assert "\n" not in str(error.value)


def test_a_head_that_differs_from_the_embeddings_it_is_tied_to_is_refused(saved):
    with pytest.raises(
        InputError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight, but config\.json ties"
    ):
        load_causal_lm(saved(TIED, adding(lm_head__weight=torch.ones(64, 32))), None)
    equal = saved(TIED, lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()})
    assert load_causal_lm(equal, None).lm_head.weight.shape == (64, 32)


def constants(prefix, *names):
    values = {"masked_bias": torch.tensor(-1e4), "inv_freq": torch.ones(4), "bias": torch.ones(1, 1, 9, 9)}
    return lambda w: {**w, **{f"{prefix}.{n}": values[n.rsplit(".", 1)[-1]].clone() for n in names}}


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (LLAMA, with_prefix("model.")),
        (LLAMA, constants("model.layers.0", "self_attn.rotary_emb.inv_freq")),
        (GPT2, constants("transformer.h.0", "attn.bias", "attn.masked_bias")),
        (GPT2, lambda w: {n.removeprefix("transformer."): t for n, t in w.items()}),
        (
            GPTNeoConfig(
                vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
            ),
            constants("transformer.h.0", "attn.attention.bias", "attn.attention.masked_bias"),
        ),
        (
            GPTNeoXConfig(
                vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
            ),
            constants("gpt_neox.layers.0.attention", "bias", "masked_bias", "rotary_emb.inv_freq"),
        ),
        (MixtralConfig(**SMALL_CONFIG, num_local_experts=4), lambda w: w),
    ],
    ids=["model.model.", "llama-1", "gpt-2", "gpt-2 without prefix", "gpt-neo", "pythia", "mixtral"],
)
def test_what_older_versions_saved_beside_the_weights_is_no_error(saved, config, change):
    plain = AutoModelForCausalLM.from_pretrained(saved(config))
    expected = {name: weight.clone() for name, weight in plain.state_dict().items()}
    own = load_causal_lm(saved(config, change), None).state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in own.items())


def test_the_text_model_of_a_multimodal_folder_reports_what_is_left_out(saved, capsys):
    text = {**SMALL_CONFIG, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
    whole = Llama4Config(text_config=text, vision_config={"hidden_size": 32, "num_hidden_layers": 1})
    vision = {"vision_model.patch.weight": torch.ones(2), "multi_modal_projector.weight": torch.ones(2)}

    def as_whole(weights):
        return {**{f"language_model.{n}": w for n, w in weights.items()}, **vision}

    folder = saved(whole.text_config, as_whole, **whole.to_dict())
    check_weights(folder, None)
    assert capsys.readouterr().out == ""
    assert load_causal_lm(folder, None).config.model_type == "llama4_text"
    assert (
        "2 weights that are not for text are left out: multi_modal_projector, vision_model" in capsys.readouterr().out
    )
    with pytest.raises(InputError, match=r"1 weight is missing .*2 weights are unexpected"):
        load_causal_lm(saved(whole.text_config, lambda w: without("lm_head")(as_whole(w)), **whole.to_dict()), None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(saved, value):
    def damage(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        return weights

    says = r"1 of the 1,536 values of weight model\.layers\.1\.mlp\.up_proj\.weight are not finite \(NaN or inf"
    with pytest.raises(InputError, match=says):
        load_causal_lm(saved(LLAMA, damage), None)


def test_weights_whose_sum_overflows_are_finite(saved):
    folder = saved(LLAMA, adding(model__norm__weight=torch.full((32,), 3e38)))
    assert torch.isfinite(load_causal_lm(folder, None).model.norm.weight).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # the second by a device map, as for a GPU
def test_a_model_in_a_type_is_that_of_transformers(saved, dtype, device):
    """The frequencies of rotary embeddings stay in float32, so long contexts are computed as transformers does."""
    folder = saved(LLAMA)
    own = load_causal_lm(folder, None, dtype=dtype, device=device).eval()
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    assert own.dtype == expected.dtype == getattr(torch, dtype)
    for name, buffer in expected.named_buffers():
        assert buffer.dtype == torch.float32
        assert torch.equal(own.get_buffer(name), buffer)
    ids = torch.randint(3, 64, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(own(input_ids=ids).logits, expected(input_ids=ids).logits)
    rounded = load_causal_lm(folder, None).to(getattr(torch, dtype)).get_buffer("model.rotary_emb.inv_freq")
    assert torch.equal(rounded.float(), own.get_buffer("model.rotary_emb.inv_freq")) == (dtype == "float32")


def test_a_model_that_does_not_fit_its_device_is_not_called_damaged(saved, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    folder = saved(LLAMA)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(torch.OutOfMemoryError):
        load_causal_lm(folder, None)


def test_results_of_rounded_buffers_are_told_from_others():
    assert precision("float32", "cpu") == {"dtype": "float32", "device": "cpu"}, "kept results stay valid"
    assert precision("bfloat16", "cpu") == {"dtype": "bfloat16", "device": "cpu", "buffers": "float32"}
