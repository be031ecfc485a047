"""Models and tokenizers from folders: what is wrong with a folder is one line."""

import json
import re

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

from sftmix.data.encoding import Encoder
from sftmix.data.templates import set_template, template_source
from sftmix.errors import InputError
from sftmix.models.export import export
from sftmix.models.loading import (
    check_folder,
    check_weights,
    load_causal_lm,
    load_tokenizer,
    num_embeddings,
    set_pad_token,
)
from sftmix.models.tiny import tiny_llama

SHAPE = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 64, "seed": 0}


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    tiny_tokenizer.chat_template = "{{ messages }}{{ eos_token }}"
    export(tiny_llama(tiny_tokenizer, **SHAPE), tiny_tokenizer, tmp_path / "model", "float32", 1)
    return tmp_path / "model"


def test_the_embedded_model_is_the_same_for_the_same_seed(tiny_tokenizer):
    import torch

    first, again = tiny_llama(tiny_tokenizer, **SHAPE), tiny_llama(tiny_tokenizer, **SHAPE)
    other = tiny_llama(tiny_tokenizer, **{**SHAPE, "seed": 1})
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.model.embed_tokens.weight, other.model.embed_tokens.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_folder_loads_with_plain_transformers(tiny_tokenizer, tmp_path, dtype):
    import torch

    from sftmix.models.export import DTYPES

    model = tiny_llama(tiny_tokenizer, **SHAPE)
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


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda f: [p.unlink() for p in f.glob("*.safetensors")], r"no weights in it, expected \*\.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin is a pickle"),
        (lambda f: (f / "config.json").unlink(), r"no config.json in it, expected config\.json$"),
        (
            lambda f: [p.unlink() for p in f.glob("*") if p.name != "generation_config.json"],
            r"no config\.json, weights and tokenizer in it, expected config\.json, \*\.safetensors, tokenizer\.json$",
        ),
        (
            lambda f: ([p.unlink() for p in f.glob("*")], (f / "tokenizer.model").write_bytes(b"x")),
            r"no config\.json, weights and tokenizer in it, expected .*; tokenizer\.model is not enough",
        ),
        (
            lambda f: ([p.unlink() for p in f.glob("tok*")], (f / "tokenizer.model").write_bytes(b"x")),
            r"no tokenizer in it, expected tokenizer\.json; tokenizer\.model is not enough, AutoTokenizer\.from_pre",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
            "b.safetensors is not in it, which its index names",
        ),
    ],
)
def test_a_folder_that_lacks_something_is_refused(folder, break_it, says):
    break_it(folder)
    with pytest.raises(InputError, match=says) as error:
        check_folder(str(folder), "model.path")
    assert str(error.value).startswith(f"model.path={folder}: ")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors.index.json", b"{", "is not an index of weights, expected a weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"lm_head.weight": null}}', "is not an index of weights"),
        ("model.safetensors.index.json", b'{"weight_map": []}', "is not an index of weights"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{}", "holds no weights"),
        ("model.safetensors", b"\x02" + bytes(7) + b"[]", "is no safetensors file"),
    ],
)
def test_a_damaged_file_is_named(folder, name, content, says):
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"model\.path: {folder / name} {says}"):
        check_folder(str(folder), "model.path")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        check_folder(str(tmp_path / "nowhere"), "model.path")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["model-Q4_K_M.gguf"], "model-Q4_K_M.gguf is a GGUF file, .* cannot be tuned: download the original model"),
        (["config.json", "tokenizer.json", "a.GGUF"], "a.GGUF is a GGUF file, .* cannot be tuned"),
        (["config.json", "pytorch_model-00001-of-00002.bin"], r"is a pickle, .* \(save_pretrained writes"),
        (["consolidated.00.pth", "params.json"], "consolidated.00.pth is a pickle, .*: download the original model"),
        (["original/consolidated.00.pth"], "consolidated.00.pth is a pickle"),
        (["epoch=3.ckpt"], "epoch=3.ckpt is a pickle"),
        (["config.json", "onnx/model.onnx"], "model.onnx is an ONNX file"),
        (["config.json", "weights.npz"], "weights.npz is a file of MLX"),
        (["config.json", "tf_model.h5"], "tf_model.h5 is a file of TensorFlow"),
    ],
)
def test_weights_of_another_format_are_named_with_the_remedy(tmp_path, files, says):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=says) as error:
        check_folder(str(tmp_path), "model.path")
    assert str(error.value).startswith(f"model.path={tmp_path}: no *.safetensors in it")
    if "/" not in files[0]:
        with pytest.raises(InputError, match=f"model.path={re.escape(str(tmp_path))}"):
            check_folder(str(tmp_path / files[-1]), "model.path")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized \(gptq\), which cannot be tuned"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized \(awq\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantized \(bitsandbytes\)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantized, which cannot be tuned: download the original"),
    ],
)
def test_quantized_weights_are_refused_with_the_remedy(folder, config, says):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    with pytest.raises(InputError, match=f"model.path={re.escape(str(folder))}: its weights are {says}"):
        check_folder(str(folder), "model.path")


def test_files_of_a_trainer_are_not_taken_for_weights(tmp_path):
    for name in ("config.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"no weights and tokenizer in it, expected \*\.safetensors"):
        check_folder(str(tmp_path), "model.path")


def test_weights_that_are_cut_off_are_told_before_they_are_needed(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut, says in ((whole[:200], "is no safetensors file"), (whole[:-10], "is cut off"), (b"", "is no safetensors")):
        weights.write_bytes(cut)
        with pytest.raises(InputError, match=says) as error:
            check_folder(str(folder), "model.path")
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match="could not be read") as error:
            load_causal_lm(str(folder), None)
        assert "\n" not in str(error.value)


def test_a_model_that_the_hub_does_not_give_is_told_with_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise OSError("We couldn't connect to the hub\nsecond line")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        InputError, match=r"model org/name: .*connect.*hf auth login.*model=local model\.path="
    ) as error:
        load_tokenizer("org/name", "main", None)
    assert "\n" not in str(error.value)


def test_a_pad_token_is_made_from_the_vocabulary_where_there_is_none(shared):
    for name, pad in (("gpt2", "<|endoftext|>"), ("mistral_v1", "<unk>")):
        tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
        size = len(tokenizer)
        tokenizer.pad_token = None
        set_pad_token(tokenizer, None)
        assert tokenizer.pad_token == pad
        assert len(tokenizer) == size


def test_a_pad_token_that_was_added_without_resizing_the_model_is_not_used(folder):
    """Padding goes through the embeddings, in training and in a batch that the exported model generates from."""
    added = AutoTokenizer.from_pretrained(folder)
    added.add_special_tokens({"pad_token": "[PAD]"})
    added.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == num_embeddings(str(folder), None) == 400
    assert load_tokenizer(str(folder), None, None).pad_token == "<pad>"
    with pytest.raises(InputError, match=r"^model\.pad_token=\[PAD\]: its id is 400 and the model has 400 embeddings"):
        load_tokenizer(str(folder), None, "[PAD]")


def test_a_folder_of_a_tokenizer_only_has_no_number_of_embeddings(shared):
    assert num_embeddings(str(shared / "tokenizers/gpt2"), None) is None


def test_a_folder_whose_name_begins_with_a_tilde_is_no_home_folder(folder, monkeypatch):
    folder.rename(folder.with_name("~nosuchuser"))
    monkeypatch.chdir(folder.parent)
    assert num_embeddings("./~nosuchuser", None) == 400


@pytest.mark.parametrize("known", [None, 1, [1, 2]])
def test_an_exported_folder_stops_at_the_end_of_turn_that_was_trained(tiny_tokenizer, tmp_path, known):
    """Plain transformers stops there, and the tokenizer names the same token."""
    import torch

    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    set_template(tiny_tokenizer, template_source("chatml"))
    end = Encoder(tiny_tokenizer, 64, "error").end_token_id
    model = tiny_llama(tiny_tokenizer, **SHAPE)
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


def test_a_pad_token_that_is_not_in_the_vocabulary_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match=r"model\.pad_token=<nope>: not in the tokenizer's vocabulary"):
        set_pad_token(tiny_tokenizer, "<nope>")


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA, TIED = LlamaConfig(**SMALL), LlamaConfig(**SMALL, tie_word_embeddings=True)
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
            MixtralConfig(**SMALL, num_local_experts=4),
            without("0.block_sparse_moe.experts.2.w1"),
            {},
            "1 weight is missing",
        ),
        (MixtralConfig(**SMALL, num_local_experts=4), without("experts.3."), {}, r"experts\.down_proj is \[3, 32"),
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
        (MixtralConfig(**SMALL, num_local_experts=4), lambda w: w),
    ],
    ids=["model.model.", "llama-1", "gpt-2", "gpt-2 without prefix", "gpt-neo", "pythia", "mixtral"],
)
def test_what_older_versions_saved_beside_the_weights_is_no_error(saved, config, change):
    plain = AutoModelForCausalLM.from_pretrained(saved(config))
    expected = {name: weight.clone() for name, weight in plain.state_dict().items()}
    own = load_causal_lm(saved(config, change), None).state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in own.items())


def test_the_text_model_of_a_multimodal_folder_leaves_the_rest_out_and_says_so(saved, capsys):
    text = {**SMALL, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}
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


@pytest.mark.parametrize("names", [["checkpoint-90", "checkpoint-100"], ["model"], ["adapter"]])
def test_models_inside_a_folder_that_is_none_are_named(folder, tmp_path, names):
    outer = tmp_path / "out"
    outer.mkdir()
    (outer / "tokenizer.json").write_text("{}")
    for name in names:
        (outer / name).mkdir()
        (outer / name / ("adapter_config.json" if name == "adapter" else "config.json")).write_text("{}")
    says = rf"but models in {', '.join(names)}: expected one of them, such as {outer / names[-1]}$"
    with pytest.raises(InputError, match=says):
        check_folder(str(outer), "model.path")


def test_a_tokenizer_that_another_package_made_has_a_remedy(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "tokenizer.model").write_bytes(b"not a vocabulary")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(InputError, match=r"there is no tokenizer\.json in it: load the tokenizer with the package"):
        load_tokenizer(str(folder), None, None)
