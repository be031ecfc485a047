"""Rows become examples: both shapes, dialogue expansion, ids by content, duplicates, the held-out part."""

import json
import random
import re
import sys
import tracemalloc

import pytest

from sftmix.data import census as reasons
from sftmix.data.census import Census, Places
from sftmix.data.example import is_held_out
from sftmix.data.reader import FIRST_ROWS, ExampleReader, HashSet, examples_from_rows
from sftmix.data.rows import Row
from sftmix.data.sources import read_file
from sftmix.data.turns import is_blank
from sftmix.errors import InputError


def rows(*fields):
    return [Row(f"f, row {i}", i, f, "f") for i, f in enumerate(fields, start=1)]


def examples(*fields, limit=None):
    census = Census()
    return examples_from_rows(rows(*fields), census, limit), census


def turn(role, content):
    return {"role": role, "content": content}


def test_an_alpaca_row_keeps_instruction_and_input_apart_and_together():
    (example,), _ = examples({"instruction": "Add.", "input": "1 2", "output": "3", "group": "rule"})
    assert example.messages[0].content == "Add.\n\n1 2"
    assert (example.messages[0].instruction, example.messages[0].input) == ("Add.", "1 2")
    assert (example.response, example.source, example.row, example.group) == ("3", "f", 1, "rule")


def test_a_dialogue_becomes_one_example_per_assistant_turn():
    talk = [
        turn("system", "S"),
        turn("user", "u1"),
        turn("assistant", "a1"),
        turn("user", "u2"),
        turn("assistant", "a2"),
    ]
    found, _ = examples({"messages": talk})
    assert [e.response for e in found] == ["a1", "a2"]
    assert [m.content for m in found[1].messages] == ["S", "u1", "a1", "u2"]
    assert found[0].dialogue == found[1].dialogue
    assert found[0].id != found[1].id


def test_an_id_is_of_the_content_alone():
    row, other = {"instruction": "A", "output": "B"}, {"instruction": "C", "output": "D"}
    first, _ = examples(row, other)
    again, _ = examples(other, row)
    assert {e.id for e in first} == {e.id for e in again}
    assert first[0].id == again[1].id
    assert first[0].id != examples({"instruction": "A", "output": "B "})[0][0].id


def places(census):
    return {reason: [p.removeprefix("f row ") for p in at.first] for reason, at in census.dropped.items()}


def test_nothing_is_lost_in_silence():
    found, census = examples(
        {"instruction": "A", "output": "B"},
        {"instruction": "A", "output": ""},
        {"instruction": "A", "output": "  \n"},
        {"instruction": "A", "output": None},
        {"instruction": "A", "output": "B"},
        {"messages": [turn("user", "hello"), turn("assistant", "hi")]},
        ["no record"],
        {"instruction": "A", "output": 7},
        {"instruction": ["A"], "output": "B"},
        {"instruction": "half a character \ud83d", "output": "B"},
        {"instruction": " ", "input": None, "output": "B"},
    )
    assert len(found) == 1
    assert places(census) == {
        reasons.EMPTY_RESPONSE: ["2", "3", "4"],
        reasons.DUPLICATE: ["5"],
        reasons.OTHER_SCHEMA: ["6", "7"],
        f"{reasons.NOT_TEXT} (output: a number)": ["8"],
        f"{reasons.NOT_TEXT} (instruction: an array)": ["9"],
        reasons.LONE_SURROGATE: ["10"],
        reasons.EMPTY_PROMPT: ["11"],
    }
    assert census.rows["dropped"] == 10


def dialogue(*turns):
    return {"messages": [turn({"s": "system", "u": "user", "a": "assistant"}[t[0]], t[1:]) for t in turns]}


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


def test_a_dialogue_that_loses_a_turn_is_shortened_and_says_so():
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


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"instruction": "A", "output": "B", "text": "whole prompt"}, "instruction"),
        ({"prompt": "A", "completion": "B"}, "prompt"),
        ({"prompt": [turn("user", "A")], "completion": [turn("assistant", "B")]}, "prompt"),
        ({"messages": [turn("user", "A"), turn("assistant", "B")], "prompt": "A", "prompt_id": "x"}, "messages"),
        ({"conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]}, "conversations"),
    ],
)
def test_every_shape_gives_the_same_example(fields, shape):
    census = Census()
    reader = ExampleReader(census)
    ((example,),) = reader.read(rows(fields))
    assert ([m.content for m in example.messages], example.response) == (["A"], "B")
    assert dict(reader.num_rows) == {shape: 1}
    assert example.id == examples({"instruction": "A", "output": "B"})[0][0].id


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


def test_a_weight_of_a_whole_row_is_a_column_that_is_not_read():
    reader = ExampleReader(Census())
    found = [e for row in reader.read(rows({"instruction": "A", "output": "B", "weight": 0})) for e in row]
    assert len(found) == 1
    assert reader.unread == {"weight"}


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


def test_rows_that_set_instruction_and_input_apart_at_other_places_are_two_examples():
    found, census = examples(
        {"instruction": "A", "input": "B", "output": "C"},
        {"instruction": "A\n\nB", "input": "", "output": "C"},
        {"instruction": "", "input": "A\n\nB", "output": "C"},
        {"instruction": "A\n\nB", "output": "C"},
        {"messages": None, "instruction": "A", "input": "B", "output": "C"},
    )
    assert len({e.id for e in found}) == 3
    assert len({e.dialogue for e in found}) == 1, "they are held out together"
    assert places(census) == {reasons.DUPLICATE: ["4", "5"]}
    from jinja2 import Template

    from sftmix.data.templates import template_source

    alpaca = Template(template_source("alpaca"))
    shown = {alpaca.render(messages=[m.as_dict() for m in e.messages], eos_token="") for e in found}
    assert len(shown) == 3


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
def test_a_system_message_stands_first(fields):
    ((example,), _) = examples(fields)
    assert [(m.role, m.content) for m in example.messages] == [("system", "S"), ("user", "A")]


def test_a_system_field_that_gives_way_to_another_system_turn_is_noted():
    talk = [turn("system", "S"), turn("user", "A"), turn("assistant", "B")]
    assert dict(examples({"system": "S", "messages": talk})[1].noted) == {}
    assert examples({"system": "T", "messages": talk})[1].noted[reasons.SYSTEM_TWICE].first == ["f row 1"]


def test_columns_that_nothing_reads_are_known_by_name():
    reader = ExampleReader(Census())
    first = {"instruction": "A", "output": "B", "context": "C", "id": 3}
    list(reader.read(rows(first, {"instruction": "C", "output": "D", "history": []})))
    assert reader.unread == {"context", "history"}, "of all rows, not of the first alone"


def read(*fields, **options):
    census = Census()
    return [e for row in ExampleReader(census, **options).read(rows(*fields)) for e in row], census


def test_columns_are_renamed():
    found, _ = read({"question": "A", "answer": "B"}, columns={"instruction": "question", "output": "answer"})
    assert (found[0].instruction, found[0].response) == ("A", "B")


@pytest.mark.parametrize(
    ("fields", "options", "says"),
    [
        ({"output": "B", "answer": "C", "instruction": "A"}, {"columns": {"output": "answer"}},
         r"data\.columns\.output=answer, but the row has a column output as well"),
        ({"messages": [], "conversations": []}, {}, "two ways to read a row, .* choose one by data.schema=messages"),
        ({"prompt": "A", "completion": "B", "instruction": "A", "output": "B"}, {}, "two ways to read a row"),
        ({"prompt": "A", "completion": "B"}, {"schema": "messages"}, "data.schema=messages needs messages of role and"),
    ],
)  # fmt: skip
def test_columns_of_the_same_meaning_are_refused(fields, options, says):
    with pytest.raises(InputError, match=says):
        read(fields, **options)


def test_the_shape_can_be_chosen():
    both = {"prompt": "A", "completion": "B", "instruction": "C", "output": "D"}
    assert read(both, schema="prompt")[0][0].response == "B"
    assert read(both, schema="instruction")[0][0].response == "D"


def test_an_id_of_the_source_that_stands_twice_with_other_content_is_noted_and_both_are_kept():
    found, census = examples(
        {"id": "x", "instruction": "A", "output": "B"}, {"id": "x", "instruction": "A", "output": "C"}
    )
    assert len({e.id for e in found}) == 2
    assert dict(census.noted) == {reasons.SAME_SOURCE_ID: Places(1, ["f row 2"])}


def test_an_id_is_known_again_however_it_is_written_and_a_blank_one_is_none():
    rows = [
        {"id": i, "instruction": "A", "output": str(k)} for k, i in enumerate([1, "1", 1.0, "", "", " ", " ", None])
    ]
    assert dict(examples(*rows)[1].noted) == {reasons.SAME_SOURCE_ID: Places(2, ["f row 2", "f row 3"])}


def test_an_id_is_compared_with_the_first_content_that_it_had():
    rows = [{"id": "x", "instruction": "A", "output": output} for output in "BCCB"]
    assert dict(examples(*rows)[1].noted) == {reasons.SAME_SOURCE_ID: Places(2, ["f row 2", "f row 3"])}


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


def test_what_else_a_row_holds_is_noted():
    talk = [{**turn("user", "A"), "images": ["a.png"], "tools": []}, {**turn("assistant", "B"), "value": "other"}]
    found, census = read(
        {"messages": [turn("user", "Z"), turn("assistant", "B")]},
        {"messages": talk, "conversations": None},
        {"messages": [turn("user", "C"), turn("assistant", "D")], "instruction": "I", "output": "O"},
    )
    assert [e.response for e in found] == ["B", "B", "D"]
    assert dict(census.noted) == {
        f"{reasons.UNREAD_FIELD}: images": Places(1, ["f row 2"]),
        f"{reasons.UNREAD_FIELD}: value": Places(1, ["f row 2"]),
        f"{reasons.SECOND_SCHEMA}: instruction, input (where there is one) and output": Places(1, ["f row 3"]),
    }


def test_group_0_is_a_group(compose):
    wanted = compose("data=own", "data.path=a.json", "data.groups=[0]").data.groups
    rows = [{"instruction": f"Say {k}.", "output": "B", "group": g} for k, g in enumerate([0, "0", 1, None, ""])]
    assert [e.group for e in read(*rows)[0]] == ["0", "0", "1", "", ""]
    assert [e.group for e in read(*rows, groups=wanted)[0]] == ["0", "0"]


def test_wanted_groups_alone_are_kept():
    found, census = read(
        {"instruction": "A", "output": "B", "group": "x"},
        {"instruction": "C", "output": "D", "group": "y"},
        groups=["y"],
    )
    assert [e.group for e in found] == ["y"]
    assert places(census) == {reasons.OTHER_GROUP: ["1"]}


@pytest.mark.parametrize(
    ("groups", "given", "says"),
    [
        (["a"], [{}, {}], r"data\.groups: no row has a group in column group; 'data\.columns=\{group: NAME\}'"),
        (["x", "a", "b"], [{"group": "x"}, {"group": "y"}, {}], r"data\.groups: no row is of group a; there are x, y$"),
    ],
)
def test_a_wanted_group_that_no_row_is_of_is_refused(groups, given, says):
    reader = ExampleReader(Census(), groups=groups)
    list(reader.read(rows(*({"instruction": str(i), "output": "B", **g} for i, g in enumerate(given)))))
    with pytest.raises(InputError, match=says):
        reader.check_settings()


def test_first_rows_that_fit_no_shape_are_dropped_where_a_later_one_fits():
    found, census = examples(None, {"note": "a header"}, {"instruction": "A", "output": "B"}, "no record")
    assert [e.response for e in found] == ["B"]
    assert places(census) == {reasons.OTHER_SCHEMA: ["1", "2", "4"]}


def test_a_shape_is_looked_for_among_the_first_hundred_rows_of_each_source():
    late = [None] * FIRST_ROWS + [{"instruction": "A", "output": "B"}]
    with pytest.raises(InputError, match="f, row 1: a row is null, expected an object with named fields"):
        examples(*late)
    assert examples(*late[1:])[1].rows["dropped"] == FIRST_ROWS - 1
    other = [row._replace(source="g") for row in rows(None, dialogue("uC", "aD"))]
    reader = ExampleReader(Census())
    assert len(list(reader.read([*rows(*late[1:]), *other]))) == 2
    assert dict(reader.num_rows) == {"instruction": 1, "messages": 1}


def test_limit_takes_the_first_rows_in_file_order():
    found, _ = examples(*({"instruction": str(i), "output": "x"} for i in range(9)), limit=3)
    assert [e.row for e in found] == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"instruction": "A", "answer": "B"},
            r"f, row 1: the fields are instruction, answer, expected one of: .*\. 'data\.columns={output: NAME}'",
        ),
        ({}, "the fields are none"),
        (["a"], "f, row 1: a row is an array, expected an object"),
    ],
)
def test_a_row_that_fits_no_shape_is_told_with_its_fields(fields, says):
    with pytest.raises(InputError, match=says):
        examples(fields)


def test_a_line_end_in_the_name_of_a_column_leaves_the_error_one_line():
    with pytest.raises(InputError, match=r"the fields are a\\nb, expected") as error:
        examples({"a\nb": 1})
    assert "\n" not in str(error.value)


def test_a_renamed_column_that_is_not_there_is_told_with_the_columns_of_the_file():
    renames = {"instruction": "question", "output": "nosuch"}
    says = r"f, row 1: no column nosuch \(data\.columns\.output=nosuch\); the fields are question, answer$"
    with pytest.raises(InputError, match=says):
        read({"question": "A", "answer": "B"}, columns=renames)


def test_a_row_of_other_length_is_dropped_with_its_counts(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\nA,B,C\nA\nA,B\n")
    census = Census()
    assert len(examples_from_rows(read_file(tmp_path / "a.csv"), census)) == 1
    assert census.dropped[reasons.OTHER_LENGTH].first == [
        "a.csv row 1: 3 fields for 2 columns", "a.csv row 2: 1 field for 2 columns"
    ]  # fmt: skip
    (tmp_path / "a.csv").write_text("instruction,output\nA,B,C\n")
    with pytest.raises(
        InputError, match=r"a\.csv, line 2: 3 fields for 2 columns; a text with the delimiter or a quote"
    ):
        examples_from_rows(read_file(tmp_path / "a.csv"), Census())


def held_out(found, fraction):
    return [e.id for e in found if is_held_out(e.dialogue, fraction)]


def test_the_held_out_part_is_a_function_of_content():
    found, _ = examples(*({"instruction": str(i), "output": "x"} for i in range(1000)))
    val = held_out(found, 0.1)
    assert 70 <= len(val) <= 130
    assert held_out(found[:500], 0.1) == [e.id for e in found[:500] if e.id in val]
    assert held_out(found, 0.0) == []


def test_the_turns_of_a_dialogue_are_held_out_together():
    talk = ["uA", "a1", "uB", "a2"]
    found, _ = examples(*(dialogue(f"s{i}", *talk) for i in range(200)))
    val = set(held_out(found, 0.3))
    assert val
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert (first.id in val) == (second.id in val)


def test_the_whole_of_alpaca_is_accounted_for(shared):
    census = Census()
    rows = list(read_file(shared / "data/alpaca/alpaca_data.json"))
    found = examples_from_rows(rows, census)
    assert census.dropped[reasons.EMPTY_RESPONSE].count == 28
    assert len(found) + census.num_dropped == 52002
    assert census.num_dropped == census.rows["dropped"]
    assert sum("nooutput" in e.response.lower() for e in found) == 30, "kept: the census is no judge of what is said"
    assert sum(len(e.response.split()) <= 1 for e in found) == 2759 - 28
    assert sum(not row.fields["input"] for row in rows) == 31323
    assert sum(not e.messages[0].input for e in found) == 31311, "12 of the 28 that are dropped have no input"


def test_real_dialogues_are_expanded(shared):
    census = Census()
    found = examples_from_rows(read_file(shared / "data/multiturn/lima.jsonl"), census)
    assert len({e.dialogue for e in found}) + census.num_dropped == 1030
    assert len(found) > 1030
    assert max(len(e.messages) for e in found) == 19


def test_a_real_set_with_one_instruction_and_duplicates_is_accounted_for(shared):
    """MedAlpaca's slice: 92 rows stand twice, and 155 prompts have several answers, which are all kept."""
    census = Census()
    found = examples_from_rows(read_file(shared / "data/medical/medical_meadow_small.json"), census)
    assert census.dropped[reasons.DUPLICATE].count == 92
    assert len({e.messages[0].instruction for e in found}) == 1
    assert len({e.messages for e in found}) == 5942 - 155
    assert len(found) + census.num_dropped == 5942


def test_released_selections_are_dialogues_of_another_shape(shared):
    """ShareGPT's, with Alpaca's preamble inside the human turn: the index lists are what to use."""
    found, census = [], Census()
    reader = ExampleReader(census)
    for row in reader.read(read_file(shared / "data/selections/filtered_alpaca_1k_longest.json")):
        found += row
    assert dict(reader.num_rows) == {"conversations": 1000}
    assert len(found) == 1000
    assert all(e.instruction.startswith("Below is an instruction") for e in found)


@pytest.mark.parametrize(
    ("file", "number"), [("medical/chatdoctor5k.json", 5452), ("alpaca/alpaca_gpt4_demo_999.json", 999)]
)
def test_other_real_files_are_read_whole(shared, file, number):
    census = Census()
    found = examples_from_rows(read_file(shared / "data" / file), census)
    assert len(found) + census.num_dropped == number
    assert len(found) > 0.98 * number


def test_files_of_benchmarks_give_rows_or_one_line(shared):
    """Keyed objects, JSON lines, arrays and CSV as published: AlpacaEval's outputs alone have a shape of ours."""
    given = {}
    files = [f for f in sorted((shared / "data/bench").rglob("*")) if f.is_file()]
    for file in files:
        census = Census()
        try:
            found = examples_from_rows(read_file(file), census)
        except InputError as error:
            assert str(error).startswith(str(file)), file.name  # noqa: PT017 - it may be raised or not
            assert "\n" not in str(error)  # noqa: PT017
        else:
            given[file.name] = len(found) + census.num_dropped
    assert given == {"gpt4_1106_preview_outputs.json": 805, "vicuna-7b-v1.5_outputs.json": 805}
    assert len(files) == 12


def test_the_number_of_medmcqas_answer_is_left_as_it_is(shared):
    """`cop` counts the options from 1; no column is interpreted here: it is no text, and no index that is moved."""
    rows = list(read_file(shared / "data/bench/medmcqa_dev.jsonl"))
    assert len(rows) == 4183
    assert {row.fields["cop"] for row in rows} == {1, 2, 3, 4}
    census = Census()
    reader = ExampleReader(census, columns={"instruction": "question", "output": "cop"})
    assert list(reader.read(rows)) == []
    ((reason, dropped),) = census.dropped.items()
    assert reason.startswith(reasons.NOT_TEXT)
    assert dropped.count == 4183
    reader = ExampleReader(Census(), columns={"instruction": "question", "output": "opa"})
    first = next(reader.read(rows))[0]
    assert (first.instruction, first.response) == (rows[0].fields["question"], rows[0].fields["opa"])


@pytest.mark.parametrize("fewest", [1, 7, 10_000])
def test_a_hash_set_knows_what_was_added(monkeypatch, fewest):
    monkeypatch.setattr("sftmix.data.reader.MOST_UNSORTED", fewest)
    draw = random.Random(0)
    keys = [0, 1, 2**63, 2**64 - 1, -1, *(draw.getrandbits(64) for _ in range(300))]
    found, known = HashSet(), set()
    for key in [*keys, *reversed(keys)]:
        assert (key in found) == (key % 2**64 in known)
        assert found.add(key) == (key % 2**64 not in known)
        known.add(key % 2**64)
        assert len(found) == len(known)


def test_hashes_that_differ_by_one_are_different():
    """As floats they would be equal."""
    found = HashSet()
    for key in range(2**62, 2**62 + 5000):
        assert found.add(key)
    assert not any(found.add(key) for key in range(2**62, 2**62 + 5000))
    assert 2**62 + 5000 not in found


def test_a_hash_takes_some_bytes():
    draw = random.Random(0)
    tracemalloc.start()
    found = HashSet()
    for _ in range(100_000):
        found.add(draw.getrandbits(64))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / len(found) < 16
