"""Messages about rows without a schema: they name the setting that helps, quoted for a shell."""

import json
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from sftmix.data.row_errors import columns_override, error_hint, list_names, mismatch
from sftmix.data.schemas import REQUIRED

TURNS = [{"role": "user", "content": "A"}]


@pytest.mark.parametrize(
    ("fields", "columns", "wanted", "says"),
    [
        ({"question": "A", "answer": "B"}, {}, None, "'data.columns={instruction: NAME, output: NAME}' renames"),
        ({"prompt": "A", "answer": "B"}, {}, None, "'data.columns={completion: NAME}' renames"),
        ({"question": "A", "answer": "B"}, {"instruction": "question"}, None,
         "'data.columns={instruction: question, output: NAME}' renames"),
        ({"prompt": "A", "answer": "B"}, {}, "instruction",
         "'data.columns={instruction: NAME, output: NAME}' renames"),
        ({"Instruction": "A", "Input": "", " Output": "B", "n": 1}, {}, None,
         "Column names are case-sensitive: "
         "'data.columns={instruction: Instruction, input: Input, output: \" Output\"}'"),
        ({"Instruction": "A", "answer": "B"}, {"output": "answer"}, None,
         "Column names are case-sensitive: 'data.columns={output: answer, instruction: Instruction}'"),
        ({"chat": TURNS}, {}, None, "'data.columns={messages: chat}' renames"),
        ({"version": 1, "data": [{"q": 1}, {"q": 2}]}, {}, None,
         "If the 2 records under data are the rows, make a file of that list"),
        ({"1": {"q": 1}, "2": {"q": 2}}, {}, None,
         "If its 2 values are the rows, make a file of them without their keys"),
        ({"Instruction\n": "A", "output": "B"}, {}, None, "'data.columns={instruction: NAME}' renames"),
        (None, {}, None, ""),
    ],
)  # fmt: skip
def test_the_message_names_the_setting_that_may_help(fields, columns, wanted, says):
    assert error_hint(fields, columns, wanted, is_table=False) == says


@pytest.mark.parametrize(
    ("fields", "wanted", "shown"),
    [
        ({"text": "### Human: A ### Assistant: B"}, None, "text"),
        ({"text": "A", "id": 1, "group": "x"}, None, "text"),
        ({"content": "A"}, None, "content"),
        ({"story": "A"}, None, "story"),
        ({"Text": "A"}, None, "Text"),
        ({"text": "A"}, "prompt", "text"),
    ],
)
def test_one_text_gets_no_advice_to_rename_one_column_to_two(fields, wanted, shown):
    says = error_hint(fields, {}, wanted, is_table=False)
    assert says == (
        f"A row needs a prompt and a response in fields of their own; one text ({shown}) does not say where the "
        f"response begins: write two columns, such as instruction and output, or messages"
    )


def test_no_more_columns_are_to_be_renamed_than_are_left():
    for fields, columns, wanted in (
        ({"instruction": "A"}, {}, None),
        ({"text": "A"}, {"output": "text"}, None),
        ({"text": "A"}, {}, "messages"),
        ({"prompt": "A", "id": 3}, {}, None),
    ):
        assert "NAME" not in error_hint(fields, columns, wanted, is_table=False)
    says = error_hint({"text": "A", "label": "B"}, {}, None, is_table=False)
    assert says.startswith("A row needs a prompt and a response in fields of their own; one text (text)")
    assert says.endswith("If other columns hold them, 'data.columns={instruction: NAME, output: NAME}' renames")
    assert (
        error_hint({"chat": json.dumps(TURNS)}, {}, None, is_table=False) == "'data.columns={messages: chat}' renames"
    )


def test_a_table_without_a_known_column_may_have_no_header():
    first_row = {"Name a colour.": "", "Red.": ""}
    assert error_hint(first_row, {}, None, is_table=True).startswith(
        "Is the header missing? 'data.columns={instruction: NAME"
    )
    assert error_hint({"instruction": "", "answer": ""}, {}, None, is_table=True).startswith(
        "'data.columns={output: NAME}'"
    )


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=12))
def test_a_renaming_comes_through_shell_and_hydra(column):
    (argument,) = shlex.split(columns_override({"output": column}))
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.value() == {"output": column}


def test_names_are_cut_for_a_line():
    assert list_names([]) == "none"
    assert list_names(["a\nb\x1b"]) == "a\\nb\\x1b"
    assert list_names(["a" * 50]) == "a" * 37 + "..."
    assert list_names(range(14)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2 more"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (None, "a row is null, expected an object with named fields"),
        (1.5, "a row is a number, expected"),
        (True, "a row is a boolean, expected"),
        ("A", "a row is a string, expected"),
        ({"a": 1}, "the fields are a, expected one of: instruction, input (where there is one) and output; prompt and"),
    ],
)
def test_a_row_is_described_in_the_words_of_json(fields, says):
    assert mismatch(fields, None).startswith(says)


def test_every_shape_can_be_asked_for():
    for shape in REQUIRED:
        assert mismatch({"a": 1}, shape).endswith("; the fields are a")
