"""Models and tokenizers from folders: what is wrong with a folder is told in one line."""

import json
import re

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftmix.errors import InputError
from sftmix.models.export import export
from sftmix.models.loading import check_folder, load_causal_lm, load_tokenizer, set_pad_token
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
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "pytorch_model.bin is a pickle",
        ),
        (lambda f: (f / "config.json").unlink(), "no config.json in it"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no tokenizer in it"),
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
    with pytest.raises(InputError, match=r"no weights in it, expected \*\.safetensors"):
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


def test_a_pad_token_that_is_not_in_the_vocabulary_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match=r"model\.pad_token=<nope>: not in the tokenizer's vocabulary"):
        set_pad_token(tiny_tokenizer, "<nope>")
