"""Export: what is written equals the model, and what transformers refuses to save is found before training."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, MixtralConfig

from builders import SMALL_CONFIG
from sftmix.errors import InputError
from sftmix.models.export import check_saving, check_written, export, whole_weights
from sftmix.models.loading import load_causal_lm

SMALL = SMALL_CONFIG | {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 1}
WITHOUT_EFFECT = [
    {"top_k": 20},
    {"early_stopping": True},
    {"do_sample": False, "temperature": 0.9},
    {"do_sample": False, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.5},
    {"length_penalty": 2.0},
    {"output_scores": True},
    {"epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4},
]
WITH_EFFECT = [
    {},
    {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20},
    {"num_beams": 3, "early_stopping": True, "length_penalty": 0.5},
    {"do_sample": False, "repetition_penalty": 1.1, "max_new_tokens": 7},
]


def model(config=None):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config or LlamaConfig(**SMALL), dtype=torch.float32).eval()


@pytest.fixture
def folder_with(tmp_path, tiny_tokenizer):
    """A function that saves a model whose generation_config.json holds the given flags, and reads it again."""

    def saved(flags):
        folder = tmp_path / "in"
        model().save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1, **flags}))
        tiny_tokenizer.chat_template = "{{ messages }}{{ eos_token }}"
        return load_causal_lm(str(folder), None), tiny_tokenizer

    return saved


def exported_flags(folder):
    read = GenerationConfig.from_pretrained(folder).to_dict()
    return {k: v for k, v in read.items() if k not in ("pad_token_id", "transformers_version")}


@pytest.mark.parametrize("flags", [*WITHOUT_EFFECT, *WITH_EFFECT], ids=str)
def test_flags_of_generation_are_kept_unless_transformers_refuses_to_save_them(folder_with, tmp_path, flags):
    """The expected file is what transformers reads from the input, with the flags that it names at their defaults."""
    causal_lm, tokenizer = folder_with(flags)
    is_refused = flags in WITHOUT_EFFECT
    reset = check_saving(causal_lm, tokenizer, 1)
    assert reset == ({k: v for k, v in flags.items() if k != "do_sample"} if is_refused else {})
    export(causal_lm, tokenizer, tmp_path / "out", "float32", 1)
    expected = exported_flags(tmp_path / "in")
    expected |= {name: GenerationConfig().to_dict()[name] for name in reset}
    assert exported_flags(tmp_path / "out") == expected


def test_an_end_token_is_added_and_the_pad_token_is_the_tokenizers(folder_with, tmp_path):
    causal_lm, tokenizer = folder_with({"eos_token_id": [5, 6]})
    export(causal_lm, tokenizer, tmp_path / "out", "float32", 1)
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (written.eos_token_id, written.pad_token_id) == ([5, 6, 1], tokenizer.pad_token_id)


def test_what_cannot_be_saved_is_one_line(folder_with, monkeypatch):
    def fail(*_):
        raise ValueError("no\nsuch template")

    causal_lm, tokenizer = folder_with({})
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "save_pretrained", fail)
        with pytest.raises(
            InputError, match=r"model family llama: its config or tokenizer cannot be saved \(no such te"
        ):
            check_saving(causal_lm, tokenizer, 1)
    causal_lm.config.top_k = 20  # transformers refuses settings of generation in a model's config
    with pytest.raises(InputError, match=r"cannot be saved .*generation parameters") as error:
        check_saving(causal_lm, tokenizer, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, tie_word_embeddings=True),
        LlamaConfig(**SMALL),
        MixtralConfig(**SMALL, num_local_experts=4),
    ],
    ids=["tied", "untied", "experts"],
)
def test_written_weights_are_compared_with_the_gathered_ones(tmp_path, tiny_tokenizer, config, dtype, monkeypatch):
    """A bit that flips on its way to the disk is found; transformers stores experts under other names."""
    causal_lm, folder = model(config), tmp_path / "out"
    weights = whole_weights(causal_lm, dtype, lambda tensor: tensor)
    export(causal_lm, tiny_tokenizer, folder, dtype, 1, weights)
    before = (folder / "model.safetensors").read_bytes()
    plain = type(causal_lm).save_pretrained

    def flipped(self, path, **options):
        plain(self, path, **options)
        content = bytearray((path / "model.safetensors").read_bytes())
        content[-40] ^= 1
        (path / "model.safetensors").write_bytes(content)

    monkeypatch.setattr(type(causal_lm), "save_pretrained", flipped)
    with pytest.raises(InputError, match=r"weight .* is not what was written to it, check the disk and run again"):
        export(causal_lm, tiny_tokenizer, folder, dtype, 1, weights)
    assert (folder / "model.safetensors").read_bytes() == before, "the folder that was there is still whole"


def test_other_bits_are_found_whatever_their_value(tmp_path):
    weights = {"a": torch.tensor([0.0, float("nan"), 1.0]), "b": torch.ones((), dtype=torch.bfloat16)}
    save_file(weights, tmp_path / "model.safetensors")
    check_written(tmp_path, weights)
    shared = weights["a"]
    check_written(tmp_path, {**weights, "tied": shared})
    for wrong, says in (
        ({**weights, "a": torch.tensor([-0.0, float("nan"), 1.0])}, "weight a is not what was written"),
        ({**weights, "b": torch.ones(1, dtype=torch.bfloat16)}, "weight b is not what was written"),
        ({**weights, "b": torch.ones(())}, "weight b is not what was written"),
        ({"a": shared}, "weight b is not what was written"),
        ({**weights, "c": torch.ones(2)}, r"1 weights were not written \(c\)"),
    ):
        with pytest.raises(InputError, match=says):
            check_written(tmp_path, wrong)
    check_written(tmp_path, {**weights, "c": torch.ones(2)}, ignored=["c"])


def test_the_files_hold_the_gathered_weights(tmp_path, tiny_tokenizer):
    """The gathered ones, not those of the model in memory, which under sharded training is not whole."""
    causal_lm = model()
    weights = {n: w + 1 for n, w in whole_weights(causal_lm, "float32", lambda tensor: tensor).items()}
    export(causal_lm, tiny_tokenizer, tmp_path / "out", "float32", 1, weights)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(w, weights[n]) for n, w in written.items())
    assert written.keys() == weights.keys()
