"""Pad tokens, and tokenizers that cannot be read."""

import pytest
from transformers import (
    AutoTokenizer,
)

from builders import save_tiny_llama
from sftmix.errors import InputError
from sftmix.models.loading import num_embeddings
from sftmix.models.tokenizer import load_tokenizer, set_pad_token


@pytest.fixture
def folder(tiny_tokenizer, tmp_path):
    return save_tiny_llama(tiny_tokenizer, tmp_path / "model")


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


def test_a_pad_token_that_is_not_in_the_vocabulary_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match=r"model\.pad_token=<nope>: not in the tokenizer's vocabulary"):
        set_pad_token(tiny_tokenizer, "<nope>")


def test_a_tokenizer_that_another_package_made_has_a_remedy(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "tokenizer.model").write_bytes(b"not a vocabulary")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(InputError, match=r"there is no tokenizer\.json in it: load the tokenizer with the package"):
        load_tokenizer(str(folder), None, None)
