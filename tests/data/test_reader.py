"""Rows become examples: schemas, columns, groups, ids by content, duplicates, held-out examples."""

import random
import tracemalloc

import pytest

from reading import dialogue, examples, places, rows, turn
from sftmix.data import census as reasons
from sftmix.data.census import Census, Places
from sftmix.data.example import is_held_out
from sftmix.data.reader import FIRST_ROWS, ExampleReader, HashSet, examples_from_rows
from sftmix.data.sources import read_file
from sftmix.errors import InputError


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


def test_an_id_depends_on_the_content_only():
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


def test_a_weight_of_a_whole_row_is_a_column_that_is_not_read():
    reader = ExampleReader(Census())
    found = [e for row in reader.read(rows({"instruction": "A", "output": "B", "weight": 0})) for e in row]
    assert len(found) == 1
    assert reader.unread == {"weight"}


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


def test_a_repeated_source_id_with_other_content_is_noted_and_both_rows_are_kept():
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


def test_only_requested_groups_are_kept():
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
def test_a_requested_group_without_a_row_is_refused(groups, given, says):
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
def test_a_row_without_a_schema_is_an_error_with_its_fields(fields, says):
    with pytest.raises(InputError, match=says):
        examples(fields)


def test_a_line_end_in_the_name_of_a_column_leaves_the_error_one_line():
    with pytest.raises(InputError, match=r"the fields are a\\nb, expected") as error:
        examples({"a\nb": 1})
    assert "\n" not in str(error.value)


def test_a_renamed_column_that_is_missing_is_an_error_with_the_columns_of_the_file():
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


def test_another_seed_of_the_held_out_part_holds_out_other_rows_as_often():
    found, _ = examples(*({"instruction": str(i), "output": "x"} for i in range(1000)))
    usual, other = ({e.id for e in found if is_held_out(e.dialogue, 0.1, seed)} for seed in (None, 1))
    assert 70 <= len(other) <= 130
    assert len(usual & other) < 30
    assert {e.id for e in found if is_held_out(e.dialogue, 0.2, 1)} > other


def test_the_turns_of_a_dialogue_are_held_out_together():
    talk = ["uA", "a1", "uB", "a2"]
    found, _ = examples(*(dialogue(f"s{i}", *talk) for i in range(200)))
    val = set(held_out(found, 0.3))
    assert val
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert (first.id in val) == (second.id in val)


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


def weighted(*fields, column="w"):
    census = Census()
    reader = ExampleReader(census, columns={"weight": column})
    found = [example for some in reader.read(rows(*fields)) for example in some]
    reader.check_settings()
    return found, census, reader


def test_a_row_and_its_turns_have_weights_that_are_multiplied():
    talk = [turn("user", "A"), turn("assistant", "1") | {"w": 0.5}, turn("user", "B"), turn("assistant", "2")]
    found, census, reader = weighted({"messages": talk, "w": "3"}, {"messages": talk[2:], "w": None})
    assert [(e.response, e.weight) for e in found] == [("1", 1.5), ("2", 3.0), ("2", 1.0)]
    assert (dict(census.noted), reader.unread) == ({}, set())
    assert all("weight" not in m.as_dict() for e in found for m in e.messages)
    plain, *_ = weighted({"messages": talk[:2]})
    assert (plain[0].id, plain[0].weight) == (found[0].id, 0.5), "a weight is not part of the content"


def test_a_weight_of_zero_is_not_learned():
    talk = [turn("user", "A"), turn("assistant", "1") | {"weight": 0.0}, turn("user", "B"), turn("assistant", "2")]
    found, census, _ = weighted({"messages": talk}, {"instruction": "A", "output": "B", "weight": 0}, column="weight")
    assert [(e.response, e.weight) for e in found] == [("2", 1.0)]
    assert dict(census.noted) == {reasons.MARKED: Places(1, ["f row 1"])}


def test_weights_are_read_only_if_their_column_is_named():
    found, _ = examples({"instruction": "A", "output": "B", "weight": 7})
    assert found[0].weight == 1.0
    with pytest.raises(InputError, match=r"data\.columns\.weight=w: no row has a column w; the fields are instruction"):
        weighted({"instruction": "A", "output": "B"})


@pytest.mark.parametrize("value", [-1, float("nan"), "inf", "much", True, [1]])
@pytest.mark.parametrize("in_turn", [False, True])
def test_a_weight_that_is_not_a_number_of_at_least_zero_is_refused_with_its_place(value, in_turn):
    row = {"messages": [turn("user", "A"), turn("assistant", "B")]}
    (row["messages"][1] if in_turn else row)["w"] = value
    says = r"f, row 2: the weight is .*, expected a finite number of at least 0 \(data\.columns\.weight=w\)"
    with pytest.raises(InputError, match=says):
        weighted({"messages": [turn("user", "C"), turn("assistant", "D")]}, row)
