import pytest

from sftmix.data.encoding import Encoder
from sftmix.data.example import Message
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


@pytest.mark.parametrize("template", shipped())
@pytest.mark.parametrize("messages", TALKS, ids=["one turn", "system", "special tokens", "sentinel"])
def test_a_prompt_alone_has_the_ids_that_it_has_in_training(any_tokenizer, template, messages):
    set_template(any_tokenizer, template_source(template))
    encoder = Encoder(any_tokenizer, 4096, "error")
    if encoder._holds_special_text(messages, ""):
        expected, _ = encoder._encode_guarded(messages, "Hello.")
    else:
        expected = encoder._ids(encoder.render(messages, "Hello.").prompt)
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
