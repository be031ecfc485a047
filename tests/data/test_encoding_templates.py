"""Templates: what the shipped ones render, how a turn ends, and templates that are refused."""

import pytest
from tokenizers import AddedToken

from encoders import EXAMPLES, encode, encoder, example, places, prompt_ids
from sftmix.data import census as reasons
from sftmix.data.census import Places
from sftmix.data.encoding import SPECIAL_TEXT, TEMPLATE_DROPS, Encoder
from sftmix.data.example import Message
from sftmix.data.templates import shipped, template_source
from sftmix.errors import InputError


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
def test_a_template_that_cannot_be_used_is_an_error_before_training(tiny_tokenizer, template, says):
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
    assert list(encoded.input_ids[: encoded.num_prompt_tokens]) == prompt_ids(tiny_tokenizer, EXAMPLES[6])
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
def test_every_system_message_is_in_the_prompt_at_any_position(tiny_tokenizer, template):
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
    """The token is then the tokenizer's end token. For alpaca, mistral and zephyr, the end token does not change."""
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
