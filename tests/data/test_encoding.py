"""The border between prompt and response, under every template and tokenizer at hand (DESIGN.md, section 6)."""

import pytest

from builders import encode_examples
from encoders import EXAMPLES, encode, encoder, example, places, prompt_ids
from sftmix.data import census as reasons
from sftmix.data.census import Census, Places
from sftmix.data.encoding import SPECIAL_TEXT, STRADDLED, EncodedExample
from sftmix.data.reader import examples_from_rows
from sftmix.data.sources import read_file
from sftmix.data.templates import TOKENIZERS_OWN, shipped, template_source
from sftmix.errors import InputError


def response_text(tokenizer, encoded):
    """Return the response, decoded after its prompt: SentencePiece drops the first blank of a decoded text."""
    ids = list(encoded.input_ids)
    parts = (ids[: encoded.num_prompt_tokens], ids)
    prompt, whole = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in parts)
    assert whole.startswith(prompt)
    return whole[len(prompt) :]


def encoder_or_skip(tokenizer, template):
    if template == TOKENIZERS_OWN and not tokenizer.chat_template:
        pytest.skip("it has no template of its own")
    return encoder(tokenizer, template)


@pytest.mark.parametrize("template", [*shipped(), TOKENIZERS_OWN])
@pytest.mark.parametrize("case", EXAMPLES, ids=lambda e: e.instruction)
def test_the_border_is_where_generation_begins(any_tokenizer, template, case):
    maker = encoder_or_skip(any_tokenizer, template)
    (encoded,), _ = encode(maker, case)
    turns = [m.as_dict() for m in case.messages]
    prompt = prompt_ids(any_tokenizer, case)
    ids = list(encoded.input_ids)
    assert ids[: encoded.num_prompt_tokens] == list(prompt), "the prompt's ids are those of the prompt alone"
    text = any_tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": case.response}], tokenize=False)
    rendering = maker.render(case.messages, case.response)
    assert rendering.prompt + rendering.response == text.rstrip("\n")
    assert rendering.response.removesuffix(any_tokenizer.decode(ids[-1:])).strip() == case.response.strip()
    assert response_text(any_tokenizer, encoded) == rendering.response, "not one blank more or less"
    assert ids[-1] == maker.end_token_id, "the end token carries loss"


@pytest.mark.parametrize("template", shipped())
def test_the_beginning_token_appears_once_if_the_tokenizer_puts_it(any_tokenizer, template):
    (encoded,), _ = encode(encoder(any_tokenizer, template), EXAMPLES[0])
    begins = any_tokenizer("a")["input_ids"][0] == any_tokenizer.bos_token_id
    in_template = str(any_tokenizer.bos_token) in template_source(template)  # SmolLM2's is ChatML's <|im_start|>
    body = encoded.input_ids[:-1]
    assert (body[0] == any_tokenizer.bos_token_id) == (begins or in_template)
    # GPT-2's is its end token too, and user turns end with it
    if any_tokenizer.bos_token_id != any_tokenizer.eos_token_id and not in_template:
        assert body.count(any_tokenizer.bos_token_id) == (1 if begins else 0)


@pytest.mark.parametrize("template", [*shipped(), TOKENIZERS_OWN])
def test_no_blank_is_put_before_an_answer(any_tokenizer, template):
    maker = encoder_or_skip(any_tokenizer, template)
    (encoded,), _ = encode(maker, example("Spell.", "word"))
    first = any_tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.num_prompt_tokens])
    assert not first.startswith(("▁", "Ġ")), first
    assert response_text(any_tokenizer, encoded) == "word" + any_tokenizer.decode([maker.end_token_id])


@pytest.mark.parametrize("template", [*shipped(), TOKENIZERS_OWN])
def test_separate_tokenization_of_prompt_and_response_is_detected(any_tokenizer, template):
    """Shows that the two tests above can fail: a SentencePiece model puts a blank before both texts."""
    maker = encoder_or_skip(any_tokenizer, template)
    rendering = maker.render(example("Spell.", "word").messages, "word")
    prompt, response = maker._ids_of([rendering.prompt, rendering.response])
    encoded = EncodedExample("", (*prompt, *response), len(prompt))
    puts_blank = any_tokenizer.tokenize("word")[0].startswith("▁")
    is_seen = response_text(any_tokenizer, encoded) != "word" + any_tokenizer.decode([maker.end_token_id])
    assert is_seen == puts_blank


def test_labels_drawn_under_the_tokens(tiny_tokenizer):
    """The tokens that carry loss are those of the response and its end token, no other."""
    (encoded,), _ = encode(encoder(tiny_tokenizer, "chatml"), example("Add the numbers.", "2.", "1 and 1"))
    tokens = [tiny_tokenizer.decode([i]) for i in encoded.input_ids]
    learnt = ["^" if k >= encoded.num_prompt_tokens else "." for k in range(len(tokens))]
    text = "".join(tokens)
    drawn = "".join(mark * len(token) for token, mark in zip(tokens, learnt, strict=True))
    expected_text = "<s><|im_start|>user\nAdd the numbers.\n\n1 and 1</s>\n<|im_start|>assistant\n2.</s>"
    assert text == expected_text
    assert drawn == "." * (len(text) - len("2.</s>")) + "^" * len("2.</s>")


def test_a_token_that_straddles_the_border_is_tokenized_apart(shared, tmp_path):
    """Alpaca's original prompt ends with a colon: in GPT-2 a colon and two slashes are one token."""
    from sftmix.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(shared / "tokenizers/gpt2"), None, None)
    source = template_source("alpaca").replace("### Response:\\n", "### Response:")
    (tmp_path / "original.jinja").write_text(source)
    maker = encoder(tokenizer, str(tmp_path / "original.jinja"))
    case = example("Finish the address.", "//example.org")
    (encoded,), census = encode(maker, case)
    assert census.noted == {STRADDLED: Places(1, [case.place])}
    assert list(encoded.input_ids[: encoded.num_prompt_tokens]) == prompt_ids(tokenizer, case)
    assert tokenizer.decode(encoded.input_ids[encoded.num_prompt_tokens :]) == "//example.org<|endoftext|>"


@pytest.mark.parametrize("template", shipped())
def test_text_that_holds_a_special_tokens_string_stays_text(any_tokenizer, template):
    end = any_tokenizer.eos_token
    case = example(f"What is {end}?", f"A token: {end} ends", given=f"see {end}")
    maker = encoder(any_tokenizer, template)
    (encoded,), census = encode(maker, case)
    assert census.noted == {SPECIAL_TEXT: Places(1, [case.place])}
    response = encoded.input_ids[encoded.num_prompt_tokens :]
    special = {i for i, token in any_tokenizer.added_tokens_decoder.items() if token.special}
    assert [token for token in response if token in special] == [maker.end_token_id]
    assert response[-1] == maker.end_token_id
    assert any_tokenizer.decode(response[:-1]).strip() == f"A token: {end} ends"
    plain = example("What is it?", "A token")
    (other,), _ = encode(encoder(any_tokenizer, template), plain)
    prompt, usual = (e.input_ids[: e.num_prompt_tokens] for e in (encoded, other))
    assert prompt.count(any_tokenizer.eos_token_id) == usual.count(any_tokenizer.eos_token_id)


@pytest.mark.parametrize("template", shipped())
def test_text_that_holds_a_special_tokens_string_is_trimmed_as_any_text(any_tokenizer, template):
    end = any_tokenizer.eos_token
    maker = encoder(any_tokenizer, template)
    case = example(f"  What is {end}? \n", f"\n A token: {end} ends  ")
    (encoded,), _ = encode(maker, case)
    rendering = maker.render(case.messages, case.response)
    text = any_tokenizer.decode(encoded.input_ids[encoded.num_prompt_tokens :])
    assert text.strip() == rendering.response.strip()
    assert text.rstrip().endswith(maker.tokenizer.decode([maker.end_token_id]))


def test_the_end_token_carries_loss_where_it_is_the_pad_token(any_tokenizer):
    any_tokenizer.pad_token = any_tokenizer.eos_token
    (encoded,), _ = encode(encoder(any_tokenizer), EXAMPLES[0])
    assert encoded.input_ids[-1] == any_tokenizer.eos_token_id
    assert encoded.num_response_tokens >= 2


LONG = example("Go on.", "yes " * 20, history=[("user", "old " * 30), ("assistant", "older " * 30)])


def test_the_oldest_turns_of_the_history_go_first(tiny_tokenizer):
    room = len(encode(encoder(tiny_tokenizer, "chatml"), example("Go on.", "yes " * 20))[0][0].input_ids)
    (encoded,), census = encode(encoder(tiny_tokenizer, "chatml", max_seq_len=room), LONG)
    assert places(census.shortened) == {reasons.OLDEST_TURNS: ["test row 1"]}
    assert "old" not in tiny_tokenizer.decode(encoded.input_ids)
    assert encoded.example_id == LONG.id


def test_system_messages_stay_in_their_places_when_the_oldest_turns_go(tiny_tokenizer):
    old = [("user", "old " * 30), ("assistant", "older " * 30), ("system", "Second rule.")]
    later = [("user", "Go."), ("assistant", "Gone."), ("system", "Last rule.")]
    case = example("Go on.", "yes", system="First rule.", history=[*old, *later])
    short = example("Go on.", "yes", system="First rule.", history=[old[2], *later])
    ((expected,), _) = encode(encoder(tiny_tokenizer, "chatml"), short)
    room = len(expected.input_ids)
    (encoded,), census = encode(encoder(tiny_tokenizer, "chatml", max_seq_len=room), case)
    assert encoded.input_ids == expected.input_ids
    assert places(census.shortened) == {reasons.OLDEST_TURNS: ["test row 1"]}


def test_what_is_still_too_long_is_dropped_and_counted(tiny_tokenizer):
    found, census = encode(encoder(tiny_tokenizer, max_seq_len=300), example("A", "no " * 500), EXAMPLES[0])
    assert len(found) == 1
    assert places(census.dropped) == {reasons.NO_ROOM: ["test row 1"]}
    assert (census.total, census.kept, census.num_dropped) == (2, 1, 1)


def test_a_truncated_response_has_no_end_token(tiny_tokenizer):
    (encoded,), census = encode(
        encoder(tiny_tokenizer, max_seq_len=300, overlong="truncate"), example("A", "no " * 500)
    )
    assert len(encoded.input_ids) == 300
    assert encoded.input_ids[-1] != tiny_tokenizer.eos_token_id
    assert places(census.shortened) == {reasons.TRUNCATED: ["test row 1"]}


def test_a_prompt_that_is_too_long_is_an_error_when_asked_for(tiny_tokenizer):
    maker = encoder(tiny_tokenizer, max_seq_len=100, overlong="error")
    with pytest.raises(InputError, match=r"test row 1: \d+ prompt and \d+ response tokens, expected at most .*=100"):
        encode(maker, example("word " * 300, "yes"))


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_a_prompt_that_leaves_no_room_is_dropped_and_counted(tiny_tokenizer, overlong):
    found, census = encode(encoder(tiny_tokenizer, max_seq_len=100, overlong=overlong), example("word " * 300, "yes"))
    assert found == []
    assert places(census.dropped) == {reasons.NO_ROOM_FOR_PROMPT: ["test row 1"]}


def test_two_thousand_real_examples_keep_their_text(any_tokenizer, shared):
    """Prompt ids as generation sees them, and not one straddled border with the line break in the template."""
    census = Census()
    found = examples_from_rows(read_file(shared / "data/alpaca/alpaca_data.json"), census, 2000)
    maker = encoder(any_tokenizer)
    encoded = encode_examples(maker, found, census)
    assert STRADDLED not in census.noted
    assert len(encoded) == len(found)
    for case, one in list(zip(found, encoded, strict=True))[::20]:
        assert one.example_id == case.id
        assert list(one.input_ids[: one.num_prompt_tokens]) == prompt_ids(any_tokenizer, case)
        response = any_tokenizer.decode(one.input_ids[one.num_prompt_tokens : -1], clean_up_tokenization_spaces=False)
        assert response.strip() == case.response.strip()
