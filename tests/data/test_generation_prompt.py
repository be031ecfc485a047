"""Chat templates of the shapes of current families: training and the exported folder use the same prompt."""

import datetime

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from builders import encode_examples
from sftmix.data.census import Census
from sftmix.data.encoding import THINKS, Encoder
from sftmix.data.example import Example, Message, content_id
from sftmix.data.generation_prompt import align_generation_prompt, notes_of
from sftmix.data.prompts import PromptEncoder
from sftmix.errors import InputError

TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>",
    "<|user|>", "<|assistant|>", "<|system|>", "[gMASK]", "<sop>", "<|Q|>", "<|A|>", "<|stop|>", "<start_of_turn>",
    "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
)  # fmt: skip
NO_THOUGHT = "<think>\n\n</think>\n\n"

# history without think blocks; the last answer with one, empty where there is no reasoning_content
QWEN3 = """{%- set last = namespace(user=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role != 'assistant' %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- else %}
        {%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
        {%- set content = m.content %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > last.user and (loop.last or thought) %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    GENERATES
{%- endif %}"""
CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)
GPT_OSS = """{{- '<|start|>system<|message|>You are a model.\\nCurrent date: ' + strftime_now('%Y-%m-%d') }}
{{- '\\nReasoning: ' + (reasoning_effort if reasoning_effort is defined else 'medium') + '<|end|>' }}
{%- if messages[0].role in ['system', 'developer'] %}
    {{- '<|start|>developer<|message|># Instructions\\n\\n' + messages[0].content + '<|end|>' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {{- '<|start|>user<|message|>' + m.content + '<|end|>' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
        {{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
<|start|>assistant
{%- endif %}
"""
GLM = """[gMASK]<sop>
{%- for m in messages %}
    {%- if m.role == 'user' -%}<|user|>
{{ m.content }}
        {{- '/nothink' if enable_thinking is defined and not enable_thinking and not m.content.endswith('/nothink') }}
    {%- elif m.role == 'system' -%}<|system|>
{{ m.content }}
    {%- else -%}<|assistant|>
        {{- '\\n<think></think>' }}
        {%- if m.content.strip() %}{{- '\\n' + m.content.strip() }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking }}
{%- endif %}"""
DEEPSEEK_R1 = """{{ bos_token }}
{%- for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<|Q|>' + m.content }}
    {%- elif m.role == 'assistant' %}{{ '<|A|>' + m.content.split('</think>')[-1] + '<|stop|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|A|><think>\\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
    {{- m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content | trim }}{% set messages = messages[1:] %}{%- endif %}
{{- '<|eot_id|>' }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}"""
GENERATION_TAGS = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' %}{% generation %}{{- '<|channel|>' + m.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{- m.content + '<|im_end|>' }}{%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
EOS_AND_LINE = """{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
QWEN3_HYBRID = QWEN3.replace(
    "GENERATES",
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
)
THINKING_FALSE = (  # reasoning is switched by another name
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ '</think>' if m.role == 'assistant' }}{{ m.content }}<|stop|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{{ '<think>' if thinking is not defined or thinking else '</think>' }}{% endif %}"
)
LINE_AT_THE_END = (  # one line break at the end of a template is not printed
    "{% for m in messages %}<|{{ m.role }}|>{{ '[final] ' if m.role == 'assistant' }}{{ m.content }}<|stop|>"
    "{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}\n"
)
SWITCHED, CONTINUED, OTHER = "is false", "is added to the generation prompt", "instead of"
DATED, APPENDED = "the date is fixed", "responses end with </s>"

# name: (template, what the notes say in order of the template, end of the prompt, response with its end)
FAMILIES = {
    "Qwen3": (QWEN3_HYBRID, [SWITCHED], f"<|im_start|>assistant\n{NO_THOUGHT}", "RESPONSE<|im_end|>"),
    "Qwen3 without a switch": (
        QWEN3.replace("GENERATES", ""), [CONTINUED], f"<|im_start|>assistant\n{NO_THOUGHT}", "RESPONSE<|im_end|>"
    ),
    "Qwen3 that always thinks": (
        QWEN3.replace("GENERATES", "{{- '<think>\\n' }}"),
        [CONTINUED], f"<|im_start|>assistant\n{NO_THOUGHT}", "RESPONSE<|im_end|>",
    ),
    "Qwen3 that never thinks": (CHATML, [], "<|im_end|>\n<|im_start|>assistant\n", "RESPONSE<|im_end|>"),
    "gpt-oss": (
        GPT_OSS, [CONTINUED, DATED], "<|end|><|start|>assistant<|channel|>final<|message|>", "RESPONSE<|return|>"
    ),
    "GLM-4.5": (GLM, [APPENDED, SWITCHED], "/nothink<|assistant|>\n<think></think>", "\nRESPONSE</s>"),
    "another switch": (THINKING_FALSE, [SWITCHED], "<|assistant|></think>", "RESPONSE<|stop|>"),
    "DeepSeek-R1": (DEEPSEEK_R1, [OTHER], "<|A|>", "RESPONSE<|stop|>"),
    "Gemma": (GEMMA, [], "<start_of_turn>model\n", "RESPONSE<end_of_turn>"),
    "Llama 3": (LLAMA3, [DATED], "<|start_header_id|>assistant<|end_header_id|>\n\n", "RESPONSE<|eot_id|>"),
    "Mistral": (MISTRAL, [], " [/INST]", " RESPONSE</s>"),
    "generation tags": (GENERATION_TAGS, [CONTINUED], "<|im_start|>assistant\n<|channel|>", "RESPONSE<|im_end|>"),
    "eos and a line break": (EOS_AND_LINE, [], "</s>\nassistant: ", "RESPONSE</s>"),
    "a line break at the end": (LINE_AT_THE_END, [CONTINUED], "<|stop|><|assistant|>[final]", " RESPONSE<|stop|>"),
    "a text before the end token": (
        PHI4.replace("m.content + ", "m.content + '\\n###' + "), [], "###<|im_end|><|im_start|>assistant<|im_sep|>",
        "RESPONSE\n###<|im_end|>",
    ),
    "Phi-4": (PHI4, [], "<|im_start|>assistant<|im_sep|>", "RESPONSE<|im_end|>"),
}  # fmt: skip

SYSTEM, FIRST, REPLY, LAST = (
    ("system", "Be kind."),
    ("user", " Say hello.\n"),
    ("assistant", "Hello."),
    ("user", "More?"),
)
TALKS = ([FIRST], [FIRST, REPLY, LAST], [SYSTEM, LAST], [SYSTEM, FIRST, REPLY, LAST, ("assistant", "No."), FIRST])


def example(turns, response) -> Example:
    messages = tuple(Message(*turn) for turn in turns)
    identity = content_id(messages, response)
    return Example(identity, messages, response, "test", 1, "", identity)


@pytest.fixture
def family_tokenizer(tiny_tokenizer):
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    tiny_tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tiny_tokenizer


@pytest.fixture(params=FAMILIES)
def family(request, family_tokenizer):
    template, *expected = FAMILIES[request.param]
    family_tokenizer.chat_template = template
    return family_tokenizer, *expected


def test_a_family_is_trained_on_the_prompt_that_its_exported_folder_generates_from(family, tmp_path):
    tokenizer, notes, prompt_end, response_end = family
    encoder = Encoder(tokenizer, 2048, "error")
    tokenizer.save_pretrained(tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    census, cases = Census(), [example(talk, "Yes, I can: 42.") for talk in TALKS]
    encoded = {e.example_id: e for e in encode_examples(encoder, cases, census)}
    refuses_system = "not supported" in str(tokenizer.chat_template)
    assert len(encoded) == (2 if refuses_system else 4), census.lost()
    for case in cases:
        if case.id not in encoded:
            continue
        ids, border = list(encoded[case.id].input_ids), encoded[case.id].num_prompt_tokens
        turns = [message.as_dict() for message in case.messages]
        assert list(exported.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)) == ids[:border]
        assert PromptEncoder(exported, "key").prompt_ids(case.messages) == ids[:border], "evaluation"
        assert exported.decode(ids[:border]).endswith(prompt_end)
        assert exported.decode(ids[border:]) == response_end.replace("RESPONSE", "Yes, I can: 42.")
        assert ids[-1] == encoder.end_token_id
        assert PromptEncoder(exported, "key").end_of_turn_id() in (encoder.end_token_id, None)
    assert all(said in note for said, note in zip(notes, encoder.notes, strict=True))


def test_a_finished_dialogue_is_rendered_as_before(family):
    """Only the switch of reasoning, which is part of the template, changes more than the generation prompt."""
    tokenizer, notes, _, _ = family
    if SWITCHED in notes or DATED in notes:
        pytest.skip("the switch and the date are seen in finished dialogues too")
    turns = [{"role": role, "content": content} for role, content in [FIRST, REPLY, LAST, ("assistant", "Yes.")]]
    before = tokenizer.apply_chat_template(turns, tokenize=False)
    Encoder(tokenizer, 2048, "error")
    assert tokenizer.apply_chat_template(turns, tokenize=False) == before


def test_an_aligned_template_is_not_changed_again(family):
    tokenizer, *_ = family
    Encoder(tokenizer, 2048, "error")
    once, length = tokenizer.chat_template, len(tokenizer)
    Encoder(tokenizer, 2048, "error")
    assert tokenizer.chat_template == once
    assert len(tokenizer) == length


def test_histories_keep_no_think_block_in_training_as_in_generation(family_tokenizer):
    family_tokenizer.chat_template = QWEN3_HYBRID
    encoder = Encoder(family_tokenizer, 2048, "error")
    [encoded] = encode_examples(encoder, [example([FIRST, REPLY, LAST], "Yes.")], Census())
    text = family_tokenizer.decode(encoded.input_ids)
    assert text.endswith(f"assistant\nHello.<|im_end|>\n<|im_start|>user\nMore?<|im_end|>\n"
                         f"<|im_start|>assistant\n{NO_THOUGHT}Yes.<|im_end|>")  # fmt: skip


def test_a_response_that_thinks_is_dropped_with_this_reason_where_the_prompt_closes_thinking(family_tokenizer):
    family_tokenizer.chat_template = QWEN3_HYBRID
    census = Census()
    cases = [example([FIRST], "<think>\nhm\n</think>\n\nYes."), example([FIRST], "Yes.")]
    encoded = encode_examples(Encoder(family_tokenizer, 512, "error"), cases, census)
    assert [e.example_id for e in encoded] == [cases[1].id]
    assert list(census.dropped) == [THINKS]


def test_assistant_masks_of_a_template_with_generation_tags_stay(family_tokenizer):
    family_tokenizer.chat_template = GENERATION_TAGS
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]

    def masked():
        found = family_tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
        return found["input_ids"], found["assistant_masks"]

    before = masked()
    Encoder(family_tokenizer, 512, "error")
    assert sum(before[1]) > 0
    assert masked() == before


@pytest.mark.parametrize("template", [GPT_OSS, LLAMA3], ids=["gpt-oss", "Llama 3"])
def test_a_prompt_does_not_depend_on_the_day(family_tokenizer, template, monkeypatch):
    import transformers.utils.chat_template_utils as utils

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    family_tokenizer.chat_template = template
    encoder = Encoder(family_tokenizer, 512, "error")
    today = encoder.prompt_ids([Message("user", "Hi")])
    monkeypatch.setattr(utils, "datetime", Later)
    assert "2024" in family_tokenizer.decode(today)
    assert encoder.prompt_ids([Message("user", "Hi")]) == today


def test_several_templates_are_aligned_by_the_default_one(family_tokenizer):
    family_tokenizer.chat_template = {"default": GPT_OSS, "tool_use": CHATML}
    encoder = Encoder(family_tokenizer, 512, "error")
    assert family_tokenizer.decode(encoder.prompt_ids([Message("user", "Hi")])).endswith("final<|message|>")
    assert family_tokenizer.chat_template["tool_use"] == CHATML
    family_tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(InputError, match=r"2 chat templates \(rag, tool_use\) and none named default"):
        Encoder(family_tokenizer, 512, "error")


SYSTEM_IN_THE_LAST_TURN = """{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content, messages[1:] %}
{%- else %}{%- set turns = messages %}{%- endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' + (system + '\n\n' if loop.last and system is defined else '') + m.content + '[/INST]' }}
    {%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}
{%- endfor %}"""


@pytest.mark.parametrize("marker", ["", "[final]"])
def test_only_examples_with_a_system_message_are_dropped_where_the_template_moves_the_message(family_tokenizer, marker):
    """Templates of Mistral show the system message in the last turn, and only if this turn is the user's."""
    family_tokenizer.chat_template = SYSTEM_IN_THE_LAST_TURN.replace("' ' + m.content", f"'{marker} ' + m.content")
    encoder, census = Encoder(family_tokenizer, 512, "error"), Census()
    cases = [example(talk, "Yes.") for talk in TALKS]
    without = [case for case in cases if case.messages[0].role != "system"]
    encoded = {e.example_id: e for e in encode_examples(encoder, cases, census)}
    assert set(encoded) == {case.id for case in without}
    assert "2 dropped: template refuses or alters it" in census.lost()
    for case in without:
        prompt = encoded[case.id].input_ids[: encoded[case.id].num_prompt_tokens]
        turns = [message.as_dict() for message in case.messages]
        assert list(prompt) == family_tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False
        )
    assert sum("system message are dropped" in note for note in encoder.notes) == 1
    once = family_tokenizer.chat_template
    align_generation_prompt(family_tokenizer, "key")
    assert family_tokenizer.chat_template == once


NOT_CONSTANT = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}[{{ m.content | length }}]{% endif %}"
    "{{ m.content }}<|stop|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "endings"),
    [
        (
            NOT_CONSTANT.replace("'assistant'", "'assistant' and messages | length > 3"),
            r"ends with '.*<\|assistant\|>', .* the answer 'Yes, I am.' ends with '.*\[10\]Yes, I am\.<\|stop\|>'",
        ),
        (NOT_CONSTANT, r"ends with '.*<\|assistant\|>', .* the answer 'Blue.' ends with '.*\[5\]Blue\.<\|stop\|>'"),
        (
            CHATML.replace("+ m.content +", "+ m.content | upper +"),
            r"assistant\\n', .* ends with '.*BLUE\.<\|im_end\|>\\n'",
        ),
    ],
    ids=["a marker after a history", "a marker that depends on the answer", "an altered answer"],
)
def test_a_template_without_a_constant_border_is_refused_with_both_endings(family_tokenizer, template, endings):
    family_tokenizer.chat_template = template
    with pytest.raises(InputError, match=rf"^data\.template=x: the chat template cannot be trained with: .*{endings}"):
        align_generation_prompt(family_tokenizer, "data.template=x")


def test_an_end_token_that_is_not_special_becomes_special(family_tokenizer):
    family_tokenizer.add_tokens([AddedToken("<|turn_end|>", special=False)])
    family_tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|turn_end|>")
    encoder = Encoder(family_tokenizer, 512, "error")
    end = family_tokenizer.convert_tokens_to_ids("<|turn_end|>")
    assert encoder.end_token_id == end
    [encoded] = encode_examples(encoder, [example([("user", "What is <|turn_end|>?")], "A <|turn_end|>.")], Census())
    response = encoded.input_ids[encoded.num_prompt_tokens :]
    assert [k for k, token in enumerate(response) if token == end] == [len(response) - 1]
    assert encoded.input_ids[: encoded.num_prompt_tokens].count(end) == 1
    assert family_tokenizer.decode(response, skip_special_tokens=True) == "A <|turn_end|>."


def test_notes_are_read_from_the_template_that_was_exported(family_tokenizer, tmp_path):
    family_tokenizer.chat_template = GLM
    notes = Encoder(family_tokenizer, 512, "error").notes
    family_tokenizer.save_pretrained(tmp_path)
    assert notes_of(AutoTokenizer.from_pretrained(tmp_path).chat_template) == notes != []
