import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import encode_examples
from sftmix.data.census import Census
from sftmix.data.encoding import Encoder
from sftmix.data.example import Example, Message, content_id
from sftmix.data.prompts import PromptEncoder, without_oldest_turns
from sftmix.data.templates import set_template, shipped, template_source
from sftmix.errors import InputError

TALKS = (
    [Message("user", "Say hello.")],
    [
        Message("system", "Be kind."),
        Message("user", " Say hello.\n"),
        Message("assistant", "Hello"),
        Message("user", "ü?"),
    ],
    [Message("user", "Say </s><s> and <|im_end|> now."), Message("assistant", "</s>"), Message("user", "Go on.")],
    [Message("user", "\ue0000\ue001 </s>")],
)


OWN = (
    "{{ bos_token }}"
    "{% for m in messages %}{{ '[' + m.role + ']\\n' + m.content | trim + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\\n' }}{% endif %}"
)


def example_of(messages, response):
    identity = content_id(messages, response)
    return Example(identity, tuple(messages), response, "test", 1, "", identity)


def set_template_or_own(tokenizer, template):
    if template == "tokenizer":
        tokenizer.chat_template = tokenizer.chat_template or OWN
    else:
        set_template(tokenizer, template_source(template))


PIECES = ("SPECIAL", "Write", "a", " ", "\n", "ü", "😀", "</", ">", "<p>This is ", "[INST]", "\ue0000\ue001", ".", "|>")
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join).filter(str.strip)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), max_size=2)


@pytest.mark.parametrize("template", [*shipped(), "tokenizer"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=st.none() | TEXTS, history=TURNS, question=TEXTS, response=TEXTS)
def test_a_prompt_has_the_same_ids_in_training_and_generation(
    any_tokenizer, template, system, history, question, response
):
    """Whatever text holds a special token's string: the system message, the history, the question, the response."""
    special = [*any_tokenizer.all_special_tokens, "<|im_end|>"]

    def text(pieces: str) -> str:
        return pieces.replace("SPECIAL", special[len(pieces) % len(special)])

    set_template_or_own(any_tokenizer, template)
    encoder = Encoder(any_tokenizer, 10_000, "error")
    turns = [Message(role, text(t)) for pair in history for role, t in zip(("user", "assistant"), pair, strict=True)]
    first = [] if system is None else [Message("system", text(system))]
    messages = [*first, *turns, Message("user", text(question))]
    [encoded] = encode_examples(encoder, [example_of(messages, text(response))], Census())
    prompt = list(encoded.input_ids[: encoded.num_prompt_tokens])
    assert PromptEncoder(any_tokenizer, "key").prompt_ids(messages) == prompt
    if not any(s in m.content for m in messages for s in encoder.special):
        turns = [m.as_dict() for m in messages]
        assert list(any_tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)) == prompt
    ids = encoded.input_ids[encoded.num_prompt_tokens :]
    controls = {i for i in any_tokenizer.all_special_ids if i in (encoder.end_token_id, any_tokenizer.bos_token_id)}
    assert [k for k, i in enumerate(ids) if i in controls] == [len(ids) - 1]


@pytest.mark.parametrize("template", [*shipped(), "tokenizer"])
def test_a_special_tokens_string_in_only_the_response_changes_no_prompt(any_tokenizer, template):
    """A SentencePiece model would have another first token of a turn if its text were tokenized apart."""
    set_template_or_own(any_tokenizer, template)
    encoder = Encoder(any_tokenizer, 4096, "error")
    prompts = []
    for response in ("<p>This is wrong right.</p>", f"<p>This is {any_tokenizer.eos_token}wrong</s> right.</p>"):
        [encoded] = encode_examples(encoder, [example_of([Message("user", "Write HTML.")], response)], Census())
        prompts.append(encoded.input_ids[: encoded.num_prompt_tokens])
    assert prompts[0] == prompts[1]


@pytest.mark.parametrize("template", shipped())
@pytest.mark.parametrize("messages", TALKS, ids=["one turn", "system", "special tokens", "sentinel"])
def test_a_prompt_has_the_same_ids_in_generation_and_in_training(any_tokenizer, template, messages):
    set_template(any_tokenizer, template_source(template))
    encoder = Encoder(any_tokenizer, 4096, "error")
    [encoded] = encode_examples(encoder, [example_of(messages, "Hello.")], Census())
    expected = list(encoded.input_ids[: encoded.num_prompt_tokens])
    assert encoder.prompt_ids(messages) == expected
    assert PromptEncoder(any_tokenizer, "key").prompt_ids(messages) == expected


@pytest.mark.parametrize("template", shipped())
def test_the_end_of_a_turn_is_the_token_that_ends_a_response_in_training(any_tokenizer, template):
    set_template(any_tokenizer, template_source(template))
    encoder = Encoder(any_tokenizer, 512, "error")
    assert PromptEncoder(any_tokenizer, "key").end_of_turn_id() == encoder.end_token_id


def test_a_template_that_ends_no_turn_has_no_end(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert PromptEncoder(tiny_tokenizer, "key").end_of_turn_id() is None
    tiny_tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert PromptEncoder(tiny_tokenizer, "key").end_of_turn_id() is None


def test_a_tokenizer_without_a_template_is_refused_by_the_setting(tiny_tokenizer):
    with pytest.raises(InputError, match=r"^some\.key=null: the tokenizer has no chat template, expected alpaca"):
        PromptEncoder(tiny_tokenizer, "some.key=null")


def test_the_oldest_turns_go_and_system_messages_stay():
    talk = TALKS[1]
    assert without_oldest_turns(talk) == (talk[0], talk[3])
    assert without_oldest_turns((talk[0], talk[3])) is None
