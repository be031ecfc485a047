"""Checks of local model folders before anything heavy is imported: each fault is one line."""

import json
import re

import pytest

from builders import save_tiny_llama
from sftmix.errors import InputError
from sftmix.models.folder_check import check_folder
from sftmix.models.loading import load_causal_lm, num_embeddings


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    return save_tiny_llama(tiny_tokenizer, tmp_path / "model")


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
        ("model.safetensors", b"\x02" + bytes(7) + b"[]", "is not a safetensors file"),
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


def test_incomplete_weights_are_an_error_before_they_are_needed(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut, says in (
        (whole[:200], "is not a safetensors file"),
        (whole[:-10], "is cut off"),
        (b"", "is not a safetensors"),
    ):
        weights.write_bytes(cut)
        with pytest.raises(InputError, match=says) as error:
            check_folder(str(folder), "model.path")
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match="could not be read") as error:
            load_causal_lm(str(folder), None)
        assert "\n" not in str(error.value)


def test_a_folder_whose_name_begins_with_a_tilde_is_not_a_home_folder(folder, monkeypatch):
    folder.rename(folder.with_name("~nosuchuser"))
    monkeypatch.chdir(folder.parent)
    assert num_embeddings("./~nosuchuser", None) == 400


@pytest.mark.parametrize("names", [["checkpoint-90", "checkpoint-100"], ["model"], ["adapter"]])
def test_models_inside_a_folder_without_a_model_are_named(folder, tmp_path, names):
    outer = tmp_path / "out"
    outer.mkdir()
    (outer / "tokenizer.json").write_text("{}")
    for name in names:
        (outer / name).mkdir()
        (outer / name / ("adapter_config.json" if name == "adapter" else "config.json")).write_text("{}")
    says = rf"but models in {', '.join(names)}: expected one of them, such as {outer / names[-1]}$"
    with pytest.raises(InputError, match=says):
        check_folder(str(outer), "model.path")
