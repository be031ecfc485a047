"""Models and tokenizers from folders: what is wrong with a folder is told in one line."""

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftmix.data.encoding import Encoder
from sftmix.data.templates import set_template, template_source
from sftmix.errors import InputError
from sftmix.models.export import export
from sftmix.models.loading import check_folder, load_causal_lm, load_tokenizer, num_embeddings, set_pad_token
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
