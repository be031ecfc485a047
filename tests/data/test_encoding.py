"""The border between prompt and response, under every template and tokenizer at hand (DESIGN.md, section 6)."""

import pytest
from tokenizers import AddedToken

from builders import encode_examples
from sftmix.data import census as reasons
from sftmix.data.census import Census, Places
from sftmix.data.encoding import SPECIAL_TEXT, STRADDLED, TEMPLATE_DROPS, Encoder
from sftmix.data.example import Example, Message, content_id
from sftmix.data.reader import examples_from_rows
from sftmix.data.sources import read_file
from sftmix.data.templates import TOKENIZERS_OWN, set_template, shipped, template_source
from sftmix.errors import InputError


def example(instruction, response, given="", history=(), system=None):
    content = f"{instruction}\n\n{given}" if given else instruction
    messages = (
        *([Message("system", system)] if system else []),
        *(Message(*turn) for turn in history),
        Message("user", content, instruction, given),
    )
    identity = content_id(messages, response)
    return Example(identity, messages, response, "test", 1, "", identity)


EXAMPLES = [
    example("Say hello.", "Hello there!"),
    example("Translate.", "Ça va très bien, merci 😀", "I am very well"),
    example("List.", "\n- one\n- two\n"),
    example("Continue.", " with a blank in front"),
    example("Punctuate.", "...!"),
    example("Answer.", "42"),
    example("And then?", "Then it ends.", history=[("user", "Tell me."), ("assistant", "It begins.")]),
    example("Hi", "Yes.", system="Be brief."),
    example("Then?", "Yes.", system="Be brief.", history=[("system", "And kind.")]),
    example("Odd \x1b[31m?", "\u202eright to left\u202c, \x07 bell, \x1b[0m and\ttab"),
]


def encoder(tokenizer, template="alpaca", max_seq_len=4096, overlong="drop"):
    set_template(tokenizer, template_source(template))
    return Encoder(tokenizer, max_seq_len, overlong)


def encode(maker, *examples):
    census = Census()
    return encode_examples(maker, examples, census), census


def places(reasons):
    """Where the examples of each reason stand."""
    return {reason: places.first for reason, places in reasons.items()}


def prompt_alone(tokenizer, case):
    """The ids that transformers itself gives for generation."""
    turns = [m.as_dict() for m in case.messages]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def response_text(tokenizer, encoded):
    """The response as it stands behind the prompt: of one decoded alone, SentencePiece leaves out the first blank."""
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
    prompt = prompt_alone(any_tokenizer, case)
    ids = list(encoded.input_ids)
    assert ids[: encoded.num_prompt_tokens] == list(prompt), "the prompt's ids are those of the prompt alone"
    text = any_tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": case.response}], tokenize=False)
    rendering = maker.render(case.messages, case.response)
    assert rendering.prompt + rendering.response == text.rstrip("\n")
    assert rendering.response.removesuffix(any_tokenizer.decode(ids[-1:])).strip() == case.response.strip()
    assert response_text(any_tokenizer, encoded) == rendering.response, "not one blank more or less"
    assert ids[-1] == maker.end_token_id, "the end token carries loss"


@pytest.mark.parametrize("template", shipped())
def test_the_beginning_token_stands_once_where_the_tokenizer_puts_it(any_tokenizer, template):
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
def test_sides_tokenized_apart_with_plain_ids_would_be_seen(any_tokenizer, template, monkeypatch):
    """What the two tests above are there for: a SentencePiece model puts a blank before each of the sides."""

    def apart(maker, plain, census):
        for _, rendering in plain:
            yield tuple(maker._ids_of([rendering.prompt, rendering.response]))

    monkeypatch.setattr(Encoder, "_encode_whole", apart)
    maker = encoder_or_skip(any_tokenizer, template)
    (encoded,), _ = encode(maker, example("Spell.", "word"))
    puts_blank = any_tokenizer.tokenize("word")[0].startswith("▁")
    is_seen = response_text(any_tokenizer, encoded) != "word" + any_tokenizer.decode([maker.end_token_id])
    assert is_seen == puts_blank


def test_a_golden_rendering_of_alpacas_prompt_with_input(tiny_tokenizer):
    rendering = encoder(tiny_tokenizer).render(example("Add.", "3", "1 and 2").messages, "3")
    assert rendering.prompt == (
        "<s>Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n"
    )
    assert rendering.response == "3</s>"


def test_a_golden_rendering_of_alpacas_prompt_without_input(tiny_tokenizer):
    rendering = encoder(tiny_tokenizer).render(example("Say A.", "A").messages, "A")
    assert rendering.prompt == (
        "<s>Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay A.\n\n### Response:\n"
    )


def test_a_golden_rendering_of_chatml_turns(tiny_tokenizer):
    rendering = encoder(tiny_tokenizer, "chatml").render(EXAMPLES[6].messages, "Then it ends.")
    assert rendering.prompt == (
        "<s><|im_start|>user\nTell me.</s>\n<|im_start|>assistant\nIt begins.</s>\n"
        "<|im_start|>user\nAnd then?</s>\n<|im_start|>assistant\n"
    )
    assert rendering.response == "Then it ends.</s>"


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
    assert list(encoded.input_ids[: encoded.num_prompt_tokens]) == prompt_alone(tokenizer, case)
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
    assert census.total == census.kept + census.num_shortened + census.num_dropped == 2


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


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m.content }", "cannot be rendered, line 1"),
        ("{{ messages[0].nothing.further }}", "cannot be rendered"),
        ("{{ raise_exception('only in pairs') }}", "only in pairs"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token ends the response, and"),
        ("{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}x", "cannot be trained with"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
         "{% if add_generation_prompt %}Go:{% endif %}", "does not continue"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_told_before_training(tiny_tokenizer, template, says):
    tiny_tokenizer.chat_template = template
    with pytest.raises(InputError, match=says) as error:
        Encoder(tiny_tokenizer, 512, "drop")
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_template_of_its_own_is_refused(tiny_tokenizer):
    with pytest.raises(InputError, match=r"has no chat template, expected alpaca, .*, zephyr or the path"):
        encoder(tiny_tokenizer, "tokenizer")


def test_an_unknown_template_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"data\.template=zephyrus: no such template, expected alpaca, chatml"):
        template_source("zephyrus")


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
        assert list(one.input_ids[: one.num_prompt_tokens]) == prompt_alone(any_tokenizer, case)
        response = any_tokenizer.decode(one.input_ids[one.num_prompt_tokens : -1], clean_up_tokenization_spaces=False)
        assert response.strip() == case.response.strip()


OWN = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content | trim }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def test_a_template_of_the_tokenizers_own_ends_with_its_own_end_token(tiny_tokenizer):
    """A turn may end with another special token than the tokenizer's end token: that one carries loss then."""
    tiny_tokenizer.chat_template = OWN
    maker = encoder(tiny_tokenizer, "tokenizer")
    (encoded,), _ = encode(maker, EXAMPLES[6])
    assert maker.end_token_id == encoded.input_ids[-1] == tiny_tokenizer.convert_tokens_to_ids("<pad>")
    assert list(encoded.input_ids[: encoded.num_prompt_tokens]) == prompt_alone(tiny_tokenizer, EXAMPLES[6])
    assert tiny_tokenizer.decode(encoded.input_ids[encoded.num_prompt_tokens :]) == "Then it ends.<pad>"


def test_a_template_that_has_the_beginning_token_gets_no_second_one(tiny_tokenizer, tmp_path):
    (tmp_path / "own.jinja").write_text("{{ bos_token }}" + OWN.replace("<pad>", "{{ eos_token }}"))
    (encoded,), _ = encode(encoder(tiny_tokenizer, str(tmp_path / "own.jinja")), EXAMPLES[0])
    assert encoded.input_ids.count(tiny_tokenizer.bos_token_id) == 1


def test_an_example_that_the_template_refuses_is_dropped_and_counted(tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + OWN
    )
    found, census = encode(encoder(tiny_tokenizer, "tokenizer"), EXAMPLES[0], EXAMPLES[7])
    assert len(found) == 1
    assert places(census.dropped) == {reasons.REFUSED: ["test row 1: no system role"]}


def test_a_template_that_refuses_a_sentinel_drops_the_example_and_no_other(tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% if '\ue000' in messages[0].content %}{{ raise_exception('not this') }}{% endif %}" + OWN
    )
    found, census = encode(encoder(tiny_tokenizer, "tokenizer"), EXAMPLES[0], example("What is </s>?", "An end."))
    assert [e.example_id for e in found] == [EXAMPLES[0].id]
    assert places(census.dropped) == {reasons.REFUSED: ["test row 1"]}


KEEPING = (
    "{% set prompt = messages if add_generation_prompt else messages[:-1] %}"
    "{% for m in KEPT %}{{ '[' + m.role + ']' + m.content }}<pad>{% endfor %}"
    "[assistant]{% if not add_generation_prompt %}{{ messages[-1].content }}<pad>{% endif %}"
)
TALK = [("user", "Yes, why not?"), ("assistant", "Yes.")]


@pytest.mark.parametrize(
    ("kept", "case", "is_noted"),
    [
        ("prompt", example("Yes.", "No.", history=TALK * 2, system="Yes"), False),
        ("prompt[:2] + prompt[4:]", example("Yes.", "No.", history=TALK * 2), True),
        ("prompt[2:] + prompt[:2]", example("Yes, why?", "No.", history=TALK), True),
        ("prompt[-1:]", example("Yes, why?", "No.", history=[("user", "Yes"), ("assistant", "Yes, why")]), True),
        ("prompt[1:]", example("Be brief.", "No.", system="Be brief."), True),
        ("prompt[1:-1] + prompt[:1] + prompt[-1:]", example("Yes.", "No.", history=TALK, system="Brief."), False),
    ],
)
def test_a_turn_that_a_template_leaves_out_is_noted_whatever_other_turns_say(tiny_tokenizer, kept, case, is_noted):
    tiny_tokenizer.chat_template = KEEPING.replace("KEPT", kept)
    (_,), census = encode(Encoder(tiny_tokenizer, 512, "drop"), case)
    assert census.noted == ({TEMPLATE_DROPS: Places(1, [case.place])} if is_noted else {})


def test_a_template_that_cuts_the_only_turn_is_noted(tiny_tokenizer):
    tiny_tokenizer.chat_template = OWN.replace("m.content | trim", "(m.content | trim)[:20]")
    (_,), census = encode(encoder(tiny_tokenizer, "tokenizer"), example("word " * 20, "Yes."))
    assert census.noted == {TEMPLATE_DROPS: Places(1, ["test row 1"])}
    _, census = encode(encoder(tiny_tokenizer, "tokenizer"), example("Say hello.", "Hello."))
    assert not census.noted


@pytest.mark.parametrize("template", shipped())
def test_every_system_message_stands_in_the_prompt_wherever_it_comes(tiny_tokenizer, template):
    messages = [Message("system", "first rule"), Message("system", "second rule"), Message("user", "Go on."),
                Message("system", "last rule")]  # fmt: skip
    prompt = encoder(tiny_tokenizer, template).render(messages, "Yes.").prompt
    assert [prompt.count(rule) for rule in ("first rule", "second rule", "last rule", "Go on.")] == [1, 1, 1, 1]
    assert prompt.index("first") < prompt.index("second") < prompt.index("Go on.")


ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}


@pytest.mark.parametrize("template", shipped())
@pytest.mark.parametrize("is_special", [True, False], ids=["special", "only added"])
def test_a_shipped_template_ends_turns_with_its_own_token_where_the_tokenizer_has_it(
    tiny_tokenizer, template, is_special
):
    """The token is then the tokenizer's end token; alpaca, mistral and zephyr publish the tokenizer's own."""
    own = tiny_tokenizer.eos_token_id
    tiny_tokenizer.add_tokens([AddedToken(end, special=is_special) for end in ENDS.values()], special_tokens=is_special)
    maker = encoder(tiny_tokenizer, template)
    end = tiny_tokenizer.convert_tokens_to_ids(ENDS[template]) if template in ENDS else own
    case = example(
        "And then?", f"It {ENDS.get(template, '</s>')} ends.", history=[("user", "Go."), ("assistant", "Yes.")]
    )
    (encoded,), census = encode(maker, case)
    assert maker.end_token_id == tiny_tokenizer.eos_token_id == encoded.input_ids[-1] == end
    assert census.noted == {SPECIAL_TEXT: Places(1, [case.place])}
    assert encoded.input_ids[encoded.num_prompt_tokens : -1].count(end) == 0, "text stays text"
    assert encoded.input_ids[: encoded.num_prompt_tokens].count(end) == {"alpaca": 1, "mistral": 1}.get(template, 3)
    assert maker.notes == []


@pytest.mark.parametrize("template", shipped())
def test_a_shipped_template_ends_turns_with_the_end_token_of_a_tokenizer_without_its_own(tiny_tokenizer, template):
    maker = encoder(tiny_tokenizer, template)
    assert maker.end_token_id == tiny_tokenizer.convert_tokens_to_ids("</s>")
    said = [f"turns end with </s>, because the tokenizer has no {ENDS[template]}"] if template in ENDS else []
    assert maker.notes == said
    again = encoder(tiny_tokenizer, template)
    assert again.notes == said


def test_a_token_of_the_vocabulary_that_no_text_gives_is_no_end_of_turn(tiny_tokenizer):
    """A string that is several tokens in a text cannot end a turn, whatever the merges are."""
    assert len(tiny_tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]) > 1
    assert encoder(tiny_tokenizer, "chatml").end_token_id == tiny_tokenizer.eos_token_id
