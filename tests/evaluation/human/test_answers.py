"""The 80 instructions of the published file, and answers that are paired by instruction in any order."""

import json

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.human.answers import ModelAnswers, pair_answers, read_answers, read_vicuna


def test_the_published_file_has_the_80_instructions_of_vicuna(shared):
    bench = shared / "data" / "bench" / "alpaca_eval"
    instructions = read_vicuna(bench / "gpt4_1106_preview_outputs.json")
    assert len(set(instructions)) == 80
    a = read_answers(bench / "gpt4_1106_preview_outputs.json", "a")
    b = read_answers(bench / "vicuna-7b-v1.5_outputs.json", "b")
    assert (a.name, b.name) == ("gpt4_1106_preview", "vicuna-7b-v1.5")
    pairs = pair_answers(instructions, a, b)
    rows = json.loads((bench / "vicuna-7b-v1.5_outputs.json").read_text())
    assert [p.b for p in pairs] == [r["output"] for r in rows if r["dataset"] == "vicuna"]


def test_answers_in_another_order_and_of_more_instructions_are_paired_by_instruction():
    a = ModelAnswers("a", {"x": "ax", "y": "ay", "z": "az"})
    b = ModelAnswers("b", {"y": "by", "x": "bx"})
    assert [tuple(p) for p in pair_answers(["x", "y"], a, b)] == [("x", "ax", "bx"), ("y", "ay", "by")]


def test_an_instruction_without_an_answer_is_named():
    with pytest.raises(InputError, match=r'b: late has no answer to 1 of 2 instructions, the first is "y"'):
        pair_answers(["x", "y"], ModelAnswers("a", {"x": "1", "y": "2"}), ModelAnswers("late", {"x": "1"}))


def test_two_models_with_equal_answers_are_refused():
    with pytest.raises(InputError, match="all 2 answers of the two models are equal"):
        pair_answers(["x", "y"], ModelAnswers("a", {"x": "1", "y": "2"}), ModelAnswers("b", {"x": "1", "y": "2"}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", r"a=.*answers\.json, line 1: not JSON"),
        ("{}", "line 1: instruction is None, expected a text"),
        ("[]", "no rows, expected at least one"),
        ('[{"instruction": "x"}]', "row 1: output is None, expected a text"),
        ('[{"instruction": "x", "output": 3}]', "row 1: output is 3, expected a text"),
        ("[1]", "row 1: 1, expected a JSON object"),
        ('[{"instruction": "x", "output": "1"}, {"instruction": "x", "output": "2"}]', "rows 1 and 2 have the same"),
    ],
)
def test_a_file_of_another_form_is_one_line(content, says, tmp_path):
    file = tmp_path / "answers.json"
    file.write_text(content)
    with pytest.raises(InputError, match=says):
        read_answers(file, "a")


def test_answers_without_a_generator_go_by_the_name_of_their_file(tmp_path):
    (tmp_path / "mine.json").write_text('[{"instruction": "x", "output": ""}]')
    assert read_answers(tmp_path / "mine.json", "a") == ("mine", {"x": ""})
    with pytest.raises(InputError, match=r"b=.*absent\.json: cannot be read \(No such file"):
        read_answers(tmp_path / "absent.json", "b")


def test_a_part_of_the_instructions_is_not_taken_for_the_whole(tmp_path):
    rows = [{"instruction": str(i), "output": "", "dataset": "vicuna"} for i in range(79)]
    (tmp_path / "part.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="79 instructions whose dataset is vicuna, expected the 80"):
        read_vicuna(tmp_path / "part.json")
