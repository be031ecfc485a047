"""The embedded set: the same for the same seed, no two rows alike, every family there."""

import hashlib
import json

import pytest

from sftmix.data.demo import TASKS, demo_rows


def test_the_set_is_the_same_for_the_same_seed():
    assert demo_rows(200, 0) == demo_rows(200, 0)
    assert demo_rows(200, 0) != demo_rows(200, 1)


def test_no_two_rows_are_alike_and_every_family_is_there():
    rows = demo_rows(2000, 0)
    assert len({tuple(row.values()) for row in rows}) == 2000
    assert {row["group"] for row in rows} == set(TASKS)
    assert {group.split("/")[0] for group in TASKS} == {"rule", "open", "noise"}


def test_rule_families_have_the_answer_that_the_rule_gives():
    rows = demo_rows(2000, 0)
    for row in rows:
        if row["group"] == "rule/copying":
            assert row["output"] == row["input"]
        if row["group"] == "rule/arithmetic":
            a, b = row["input"].split(" and ")
            assert row["output"] == f"{a} and {b} make {int(a) + int(b)} in all."


def test_no_wrong_answer_is_right_by_accident():
    """A wrong answer never equals the right one of the same question."""
    rows = demo_rows(2000, 0)
    right = {(row["instruction"], row["input"]): row["output"] for row in rows if row["group"].startswith("rule/")}
    wrong = [row for row in rows if row["group"].startswith("noise/")]
    assert all(right.get((row["instruction"], row["input"])) != row["output"] for row in wrong)


def test_the_set_is_bitwise_what_it_was():
    """The embedded tokenizer is trained on it, and every run on it counts by its hash."""
    digest = hashlib.sha256(json.dumps(demo_rows(2000, 0)).encode()).hexdigest()
    assert digest == "2bb312d9409e925041ebb027b899dc8817c743b6a18b119fc35b63f60618a606"


@pytest.mark.parametrize(
    ("number", "fraction", "num_low"), [(2000, 0.5, 1000), (300, 0.25, 75), (2, 0.9, 1), (50, 0.001, 1)]
)
def test_a_fraction_of_the_rows_is_of_low_quality(number, fraction, num_low):
    rows = demo_rows(number, 0, fraction)
    assert [row["group"] for row in rows].count("low") == num_low
    assert [row["group"] for row in rows].count("high") == number - num_low
    assert len({(row["instruction"], row["input"], row["output"]) for row in rows}) == number
    assert demo_rows(number, 0, fraction) == rows
    assert demo_rows(number, 1, fraction) != rows


def right_answer(instruction, given):
    """Return the answer that the rule of a task gives for a question."""
    if instruction == "Add the numbers.":
        a, b = map(int, given.split(" and "))
        return f"{a} and {b} make {a + b} in all."
    if instruction == "Repeat the words.":
        return given
    words = given.split()
    if instruction == "Correct the grammar.":
        return " ".join([words[0], words[1] + "s", *words[2:]])
    opposites = {"hot": "cold", "big": "small", "old": "new", "wet": "dry", "dark": "bright", "full": "empty"}
    return given.removesuffix(words[-1]) + opposites[words[-1].rstrip(".")] + "."


def test_high_answers_are_right_and_low_ones_are_worse():
    low_open = set()
    for row in demo_rows(2000, 0, 0.5):
        question, answer = (row["instruction"], row["input"]), row["output"]
        assert answer
        if row["instruction"] in ("Write a short story.", "Give a piece of advice."):
            is_whole = answer.endswith((".", "!"))
            assert is_whole == (row["group"] == "high"), row
            if not is_whole:
                low_open.add(answer[0].isupper())
        else:
            assert (answer == right_answer(*question)) == (row["group"] == "high"), row
    assert low_open == {True, False}, "some are cut short, some are letters"
