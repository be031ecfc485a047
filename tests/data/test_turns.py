"""Turns of a dialogue: roles, marks not to learn, text parts, invisible text, and what is dropped."""

import json
import re
import sys

import pytest

from reading import dialogue, examples, places, turn
from sftmix.data import census as reasons
from sftmix.data.census import Places
from sftmix.data.turns import is_blank


@pytest.mark.parametrize(
    ("turns", "responses", "noted"),
    [
        (("uA", "a1", "uB"), ["1"], [reasons.ENDS_WITH_USER]),
        (("a0", "uA", "a1"), ["1"], [reasons.ASSISTANT_FIRST]),
        (("sS", "a0", "uA", "a1"), ["1"], [reasons.ASSISTANT_FIRST]),
        (("uA", "uB", "a1", "a2"), ["1", "2"], [reasons.NOT_ALTERNATING]),
        (("uA", "a1", "u", "a2"), ["1", "2"], [reasons.EMPTY_TURN]),
        (("sS", "uA", "a1"), ["1"], []),
    ],
)
def test_unusual_dialogues_are_learnt_as_far_as_they_go_and_noted(turns, responses, noted):
    found, census = examples(dialogue(*turns))
    assert [e.response for e in found] == responses
    assert census.as_dict()["noted"] == {note: {"count": 1, "places": ["f row 1"]} for note in noted}
    assert all(f"1 noted: {note} (f row 1)" in census.table() for note in noted)


def test_a_dialogue_that_loses_a_turn_counts_as_shortened():
    found, census = examples(dialogue("uA", "a", "uB", "a2"))
    assert [(e.response, e.is_whole) for e in found] == [("2", False)]
    assert places(census) == {reasons.EMPTY_RESPONSE: ["1"]}
    assert census.rows["dropped"] == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (dialogue("uA"), reasons.NO_TURN),
        (dialogue("a1", "uA"), reasons.NO_TURN),
        ({"messages": []}, reasons.NO_TURN),
        (
            {"messages": "[{'role': 'user'}]"},
            f"{reasons.NOT_TURNS} (messages: a string that is not a JSON array; Python's json.dumps writes one)",
        ),
        (
            {"messages": "{}"},
            f"{reasons.NOT_TURNS} (messages: a string that is not a JSON array; Python's json.dumps writes one)",
        ),
        ({"messages": 7}, f"{reasons.NOT_TURNS} (messages: a number)"),
        ({"messages": ["hello"]}, f"{reasons.NOT_TURNS} (a turn of messages: a string)"),
        ({"messages": [turn("user", "A"), turn("assistant", 7)]}, f"{reasons.NOT_TEXT} (content: a number)"),
        ({"messages": [turn("user", None), turn("assistant", "B")]}, reasons.EMPTY_PROMPT),
        ({"messages": [turn("user", "A"), {"role": "assistant", "text": "B"}]}, reasons.NO_CONTENT),
    ],
)
def test_a_dialogue_that_cannot_be_learnt_is_dropped_with_its_reason(fields, reason):
    found, census = examples(dialogue("uA", "a1"), fields)
    assert len(found) == 1
    assert places(census) == {reason: ["2"]}
    assert census.rows["dropped"] == 1


MARKS = [
    {"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"loss_weight": 0}, {"loss": False}, {"loss": 0},
    {"loss_scale": 0.0}, {"train": False}, {"train": "false"}, {"training": False}, {"trainable": False},
    {"train": "False"}, {"masked": True}, {"weight": 1, "train": False}, {"loss_mask": 0},
    {"compute_loss": False}, {"do_train": False}, {"calculate_loss": 0}, {"no_loss": True}, {"ignore_loss": True},
]  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("shape", ["messages", "conversations", "prompt", "string"])
def test_an_answer_that_is_marked_not_to_be_learned_is_history_only(mark, shape):
    keys = ("from", "value") if shape == "conversations" else ("role", "content")
    talk = [
        {keys[0]: role, keys[1]: text, **more}
        for role, text, more in (
            ("user", "A", {"weight": 0, "train": "maybe"}),
            ("assistant", "b", mark),
            ("user", "C", {}),
            ("assistant", "d", {"weight": 1, "train": True, "masked": False, "loss": None}),
        )
    ]
    fields = {
        "messages": {"messages": talk},
        "conversations": {"conversations": talk, "system": "S"},
        "prompt": {"prompt": talk[:1], "completion": talk[1:]},
        "string": {"messages": json.dumps(talk)},
    }[shape]
    found, census = examples(fields)
    assert [e.response for e in found] == ["d"]
    assert [m.content for m in found[0].messages if m.role != "system"] == ["A", "b", "C"]
    assert dict(census.noted) == {reasons.MARKED: Places(1, ["f row 1"])}
    assert census.rows["dropped"] == 0
    assert found[0].is_whole


@pytest.mark.parametrize(
    "learned", [{"train": True}, {"weight": 1}, {"weight": 1.0}, {"loss": "true"}, {"train": None}, {}]
)
def test_an_answer_that_is_marked_to_be_learned_is_learned(learned):
    talk = [turn("user", "A"), {**turn("assistant", "b"), **learned}]
    found, census = examples({"messages": talk})
    assert [e.response for e in found] == ["b"]
    assert not census.noted
    assert found[0].id == examples(dialogue("uA", "ab"))[0][0].id


@pytest.mark.parametrize(
    ("mark", "reason", "detail"),
    [
        ({"weight": 0.5}, reasons.NOT_A_MARK, "weight: 0.5"),
        ({"weight": 2}, reasons.NOT_A_MARK, "weight: 2"),
        ({"train": "maybe\n"}, reasons.NOT_A_MARK, r"train: maybe\\n"),
        ({"loss": [1, 0]}, reasons.NOT_A_MARK, r"loss: \[1, 0\]"),
        (
            {"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]},
            reasons.LEARNED_SPAN,
            "train_detail",
        ),
        ({"weight": 0}, reasons.ALL_MARKED, ""),
    ],
)
def test_a_dialogue_whose_marks_cannot_be_followed_is_dropped_with_its_reason(mark, reason, detail):
    found, census = examples(
        dialogue("uZ", "az"), {"messages": [turn("user", "A"), {**turn("assistant", "b"), **mark}]}
    )
    assert [e.response for e in found] == ["z"]
    ((dropped, at),) = census.dropped.items()
    assert (dropped, at.count) == (reason, 1)
    assert re.fullmatch(f"f row 2(: {detail})?", at.first[0])


TEXT_PARTS = [
    [{"type": "text", "text": "A"}, {"type": "text", "text": " b"}],
    ["A", " b"],
    [{"text": "A b"}],
    [{"type": "input_text", "text": "A b", "image_url": None}],
    {"type": "text", "text": "A b"},
]


@pytest.mark.parametrize("parts", TEXT_PARTS)
@pytest.mark.parametrize("shape", ["messages", "conversations"])
def test_contents_of_text_parts_are_joined_as_templates_join_them(parts, shape):
    keys = ("from", "value") if shape == "conversations" else ("role", "content")
    found, census = examples({shape: [{keys[0]: "user", keys[1]: parts}, {keys[0]: "assistant", keys[1]: parts}]})
    assert [(e.instruction, e.response) for e in found] == [("A b", "A b")]
    assert not census.noted


@pytest.mark.parametrize(
    ("part", "detail"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "image_url"),
        ({"type": "image"}, "image"),
        ({"type": "thinking", "thinking": "x"}, "thinking"),
        (7, "a number"),
        ({}, "an object without text"),
    ],
)
def test_a_part_that_is_not_text_drops_its_row_with_the_kind_of_the_part(part, detail):
    talk = [turn("user", [{"type": "text", "text": "A"}, part]), turn("assistant", "B")]
    found, census = examples(dialogue("uZ", "az"), {"messages": talk})
    assert len(found) == 1
    assert dict(census.dropped) == {reasons.NOT_A_TEXT_PART: Places(1, [f"f row 2: content: {detail}"])}


@pytest.mark.parametrize("shape", ["messages", "conversations"])
def test_turns_may_be_a_json_string(shape):
    talk = dialogue("sS", "uA", "ab", "uC", "ad")["messages"]
    plain, _ = examples({"messages": talk})
    found, census = examples({shape: json.dumps(talk)})
    assert [e.id for e in found] == [e.id for e in plain]
    assert not census.noted


@pytest.mark.parametrize(
    ("role", "meant"),
    [("developer", "system"), ("Human", "user"), ("USER", "user"), ("prompter", "user"), ("gpt", "assistant"),
     ("model", "assistant"), ("bot", "assistant"), ("ai", "assistant"), ("ChatGPT", "assistant")],
)  # fmt: skip
def test_roles_of_other_publishers_are_known(role, meant):
    talk = {"system": ["R", "uA", "aB"], "user": ["R", "aB"], "assistant": ["uA", "R"]}[meant]
    turns = [turn(role, "text") if t == "R" else dialogue(t)["messages"][0] for t in talk]
    (found,), _ = examples({"messages": turns})
    assert [m.role for m in found.messages] + ["assistant"] == [
        {"R": meant, "u": "user", "a": "assistant"}[t[0]] for t in talk
    ]


@pytest.mark.parametrize("role", ["tool", "function", "observation", "robot"])
def test_a_role_that_is_not_known_drops_its_row_and_is_named(role):
    found, census = examples(dialogue("uZ", "az"), {"messages": [turn("user", "A"), turn(role, "x"), turn("gpt", "B")]})
    assert len(found) == 1
    assert dict(census.dropped) == {reasons.UNKNOWN_ROLE: Places(1, [f"f row 2: role {role}"])}


INVISIBLE = ["\u200b", "\u200c\u200d", "\u2060", "\ufeff", "\u00ad", " \u200b\n", "\u3164", "\u115f\u1160", "\ufe0f",
             "\U000e0020", "\u2800", "\u00a0\u2003\u3000", "\u180e", "\u200e\u202c", "\x00", "\x1b", "\u034f",
             "\ufff9"]  # fmt: skip


@pytest.mark.parametrize("text", INVISIBLE)
def test_a_text_that_shows_nothing_is_empty(text):
    found, census = examples(
        {"instruction": "A", "output": "B"},
        {"instruction": "A", "output": text},
        {"instruction": text, "input": text, "output": "B"},
        {"system": text, "instruction": "A", "output": f"{text}C{text}"},
    )
    assert [e.response for e in found] == ["B", f"{text}C{text}"]
    assert [m.role for m in found[1].messages] == ["user"]
    assert places(census) == {reasons.EMPTY_RESPONSE: ["2"], reasons.EMPTY_PROMPT: ["3"]}


def test_what_shows_nothing_is_what_unicode_says():
    """Default ignorable code points, white space, control and format characters, by the tables of the library regex."""
    import regex

    hidden = regex.compile(r"[[\p{DI}\p{White_Space}\p{Cc}\p{Cf}]--[\p{Prepended_Concatenation_Mark}]]", regex.V1)
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    blank = {c for c in characters if is_blank(c)}
    assert blank - {"\u2800"} == {c for c in characters if hidden.match(c)}
    assert not is_blank("".join(blank) + "a")


def test_only_the_completion_is_learnt_of_a_prompt_with_answers_in_it():
    history = [turn("user", "A"), turn("assistant", "old"), turn("user", "C")]
    found, _ = examples({"prompt": history, "completion": [turn("assistant", "new")]})
    assert [e.response for e in found] == ["new"]


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "S", "prompt": "A", "completion": "B"},
        {"system": "S", "instruction": "A", "output": "B"},
        {"system": "S", "conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]},
        {"conversations": [{"from": r, "value": v} for r, v in (("system", "S"), ("human", "A"), ("gpt", "B"))]},
        {"system": "other", "messages": [turn("system", "S"), turn("user", "A"), turn("assistant", "B")]},
    ],
)  # fmt: skip
def test_a_system_message_is_first(fields):
    ((example,), _) = examples(fields)
    assert [(m.role, m.content) for m in example.messages] == [("system", "S"), ("user", "A")]


def test_a_system_field_that_gives_way_to_another_system_turn_is_noted():
    talk = [turn("system", "S"), turn("user", "A"), turn("assistant", "B")]
    assert dict(examples({"system": "S", "messages": talk})[1].noted) == {}
    assert examples({"system": "T", "messages": talk})[1].noted[reasons.SYSTEM_TWICE].first == ["f row 1"]


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": None, "from": "human", "content": None, "value": "A"}, {"role": "assistant", "content": "B"}],
        [{"role": "user", "from": "gpt", "content": "A", "value": None}, {"from": "gpt", "role": None, "value": "B"}],
        [{"role": "user", "content": "A", "value": "A"}, {"role": "assistant", "content": "B", "images": None}],
    ],
)
def test_merged_schemas_are_read_by_what_is_not_null(turns):
    (found,), census = examples({"messages": turns})
    assert (found.messages[0].role, found.instruction, found.response) == ("user", "A", "B")
    assert not census.noted
