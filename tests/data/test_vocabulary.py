import pytest

from sftmix.data.encoding import EncodedExample, Encoder
from sftmix.data.shards import EncodedExamples
from sftmix.data.templates import set_template, template_source
from sftmix.data.vocabulary import check_examples, check_template
from sftmix.errors import InputError


def examples(*sequences):
    return EncodedExamples.of(EncodedExample(str(k), tuple(ids), 1) for k, ids in enumerate(sequences))


def test_examples_with_tokens_that_have_no_embedding_are_counted_and_the_tokens_named(tiny_tokenizer):
    tiny_tokenizer.add_tokens(["<|one|>", "<|two|>", "<|three|>"])
    encoded = examples([5, 400, 6, 402, 402], [7, 8], [9, 400], [399, 3])
    with pytest.raises(
        InputError,
        match=r"^model x: the tokenizer has 403 tokens and the model 400 embeddings; 2 of 4 examples hold tokens "
        r"without an embedding: '<\|one\|>' \(400\), '<\|three\|>' \(402\)\. Expected the tokenizer",
    ):
        check_examples(encoded, tiny_tokenizer, 400, "model x")


def test_many_missing_tokens_are_not_all_named(tiny_tokenizer):
    with pytest.raises(InputError, match=r"1 of 1 examples .*\(394\) and 5 more\."):
        check_examples(examples(range(380, 400)), tiny_tokenizer, 390, "model x")


def test_tokens_that_no_example_holds_and_surplus_embeddings_do_no_harm(tiny_tokenizer):
    check_examples(examples([5, 399]), tiny_tokenizer, 400, "model x")
    check_examples(examples([5, 399]), tiny_tokenizer, 512, "model x")
    check_examples(examples([5, 399]), tiny_tokenizer, None, "model x")
    tiny_tokenizer.add_tokens(["<|one|>"])
    check_examples(examples([5, 399]), tiny_tokenizer, 400, "model x")


def test_a_template_whose_tokens_have_no_embedding_is_refused_before_encoding(tiny_tokenizer):
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    set_template(tiny_tokenizer, template_source("chatml"))
    encoder = Encoder(tiny_tokenizer, 512, "error")
    with pytest.raises(InputError, match=r"400 embeddings; every example holds .*'<\|im_start\|>' \(400\), '<\|im_end"):
        check_template(encoder, encoder.end_token_id, 400, "model x")
    check_template(encoder, encoder.end_token_id, 402, "model x")
    set_template(tiny_tokenizer, template_source("mistral"))
    tiny_tokenizer.eos_token = "<|im_end|>"
    encoder = Encoder(tiny_tokenizer, 512, "error")
    with pytest.raises(InputError, match=r"every example holds tokens without an embedding: '<\|im_end\|>' \(401\)\."):
        check_template(encoder, encoder.end_token_id, 401, "model x")
