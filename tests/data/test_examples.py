"""Rows become examples: both shapes, dialogue expansion, ids by content, duplicates, the held-out part."""

import pytest

from sftmix.data.census import BAD_ROW, DUPLICATE, EMPTY_RESPONSE, NO_TURN, Census
from sftmix.data.examples import examples_from_rows, hold_out
from sftmix.data.sources import Row, read_file
from sftmix.errors import InputError


def rows(*fields):
    return [Row(f"f, row {i}", i, f) for i, f in enumerate(fields, start=1)]


def examples(*fields, limit=None):
    census = Census()
    return examples_from_rows(rows(*fields), "f", limit, census), census


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


def test_nothing_is_lost_in_silence():
    found, census = examples(
        {"instruction": "A", "output": "B"},
        {"instruction": "A", "output": ""},
        {"instruction": "A", "output": "  \n"},
        {"instruction": "A", "output": None},
        {"instruction": "A", "output": "B"},
        {"messages": [turn("user", "hello")]},
        {"messages": "not a list"},
        {"messages": [turn("robot", "hello")]},
        {"instruction": "A", "output": 7},
        {"instruction": "half a character \ud83d", "output": "B"},
    )
    assert len(found) == 1
    assert dict(census.dropped) == {
        EMPTY_RESPONSE: ["row 2", "row 3", "row 4"],
        DUPLICATE: ["row 5"],
        NO_TURN: ["row 6"],
        BAD_ROW: ["row 7", "row 8", "row 9", "row 10"],
    }
    assert census.rows == 10


def test_limit_takes_the_first_rows_in_file_order():
    found, census = examples(*({"instruction": str(i), "output": "x"} for i in range(9)), limit=3)
    assert [e.row for e in found] == [1, 2, 3]
    assert census.rows == 3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"instruction": "A", "answer": "B"},
            "f, row 1: no response field; the fields are instruction, answer, expected",
        ),
        ({}, "the fields are none"),
        (["a"], "f, row 1: a row is list, expected an object"),
    ],
)
def test_a_row_without_a_response_field_is_told_with_its_fields(fields, says):
    with pytest.raises(InputError, match=says):
        examples(fields)


def test_the_held_out_part_is_a_function_of_content():
    found, _ = examples(*({"instruction": str(i), "output": "x"} for i in range(1000)))
    train, val = hold_out(found, 0.1)
    assert 70 <= len(val) <= 130
    assert len(train) + len(val) == 1000
    _, fewer = hold_out(found[:500], 0.1)
    assert [e.id for e in fewer] == [e.id for e in val if e.row <= 500]
    assert hold_out(found, 0.0)[1] == []


def test_the_turns_of_a_dialogue_are_held_out_together():
    talk = [turn("user", "u1"), turn("assistant", "a1"), turn("user", "u2"), turn("assistant", "a2")]
    found, _ = examples(*({"messages": [turn("system", str(i)), *talk]} for i in range(200)))
    train, val = hold_out(found, 0.3)
    assert val
    assert not {e.dialogue for e in train} & {e.dialogue for e in val}


def test_the_whole_of_alpaca_is_accounted_for(shared):
    census = Census()
    found = examples_from_rows(read_file(shared / "data/alpaca/alpaca_data.json"), "alpaca", None, census)
    assert census.rows == 52002
    assert len(census.dropped[EMPTY_RESPONSE]) == 28
    assert len(found) + census.num_dropped == 52002
    assert sum(not e.messages[0].input for e in found) > 31000


def test_real_dialogues_are_expanded(shared):
    census = Census()
    found = examples_from_rows(read_file(shared / "data/multiturn/lima.jsonl"), "lima", None, census)
    assert census.rows == 1030
    assert len(found) > 1030
    assert max(len(e.messages) for e in found) == 19
