"""Answers and preferences in AlpacaEval's form: joined by instruction, refused where they are of other questions."""

import json
import random

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.embedded import embedded_baseline
from sftmix.evaluation.alpaca_eval.outputs import (
    Annotation,
    Output,
    Pair,
    in_order,
    paired,
    read_annotations,
    read_outputs,
    refuse_other_answers,
    write_annotations,
    write_outputs,
)
from sftmix.evaluation.alpaca_eval.questions import GAMED
from sftmix.evaluation.published import locate

BASELINE = [Output(f"question {i}", f"good answer {i}", "baseline", "demo") for i in range(5)]
ANSWERS = [Output(f"question {i}", f"answer {i}", "model", "demo") for i in range(5)]


def test_what_is_written_is_read_again_whatever_it_holds(tmp_path):
    outputs = [Output("do it", 'a "quoted"\nline\x1c\u2028 <|im_start|> é \U0001f600', "model", "demo")]
    write_outputs(tmp_path / "o.json", outputs)
    assert read_outputs(tmp_path / "o.json") == outputs
    assert set(json.loads((tmp_path / "o.json").read_text())[0]) == {"instruction", "output", "generator", "dataset"}


def test_answers_in_another_order_are_joined_by_instruction(tmp_path):
    shuffled = random.Random(0).sample(ANSWERS, 5)
    assert paired(BASELINE, shuffled, tmp_path) == paired(BASELINE, ANSWERS, tmp_path)
    assert paired(BASELINE, shuffled, tmp_path)[3] == Pair(3, "question 3", "good answer 3", "answer 3")


def test_answers_to_other_questions_or_of_another_number_are_refused(tmp_path):
    strange = [*ANSWERS[:4], ANSWERS[4]._replace(instruction="x" * 100)]
    with pytest.raises(InputError, match=r"o.json: answers \"x{40}\.\.\.\", expected only instructions"):
        paired(BASELINE, strange, tmp_path / "o.json")
    with pytest.raises(InputError, match=r'o.json: lacks 2 answers of 5, the first to "question 3"'):
        paired(BASELINE, ANSWERS[:3], tmp_path / "o.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "line 1: not JSON"),
        ("nonsense", "line 1: not JSON"),
        ("{}", "line 1: instruction is None, expected a text"),
        ("[]", "no rows, expected at least one"),
        ("[1]", "row 1: 1, expected a JSON object"),
        ('[{"instruction": "a"}]', "row 1: output is None, expected a text"),
        ('[{"instruction": "a", "output": 1}]', "row 1: output is 1, expected a text"),
        (
            '[{"instruction": "a", "output": ""}, {"instruction": "a", "output": ""}]',
            "rows 1 and 2 have the same instr",
        ),
    ],
)
def test_a_file_that_holds_no_answers_is_refused_in_one_line(content, says, tmp_path):
    file = tmp_path / "o.json"
    file.write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        read_outputs(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"nowhere.json: cannot be read"):
        read_outputs(tmp_path / "nowhere.json")


def record(**changes) -> dict:
    return {
        "instruction": "question 0",
        "output_1": "good answer 0",
        "generator_1": "baseline",
        "output_2": "answer 0",
        "generator_2": "model",
        "annotator": "judge",
        "preference": 1.25,
        **changes,
    }


def annotations_of(tmp_path, *records):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(records))
    return read_annotations(file)


@pytest.mark.parametrize(
    ("written", "read"),
    [(1.25, 1.25), ("1.000006439", 1.000006439), (0, 1.5), (0.0, 1.5), (None, None), (-1, None), (float("nan"), None)],
)
def test_a_preference_is_read_in_each_form_that_files_have(written, read, tmp_path):
    assert annotations_of(tmp_path, record(preference=written))[0].preference == read


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preference": 3}, "row 2: preference is 3, expected 1 to 2"),
        ({"preference": "m"}, "row 2: preference is 'm'"),
        ({"preference": {}}, "row 2: preference is {}"),
        ({"index": "0"}, "row 2: index is '0', expected a whole number"),
        ({"output_2": None}, "row 2: output_2 is None, expected a text"),
        ({"generator_2": "other"}, r"has 2 models \(model, other\), expected one"),
        ({"annotator": "other"}, r"has 2 judges \(judge, other\), expected one"),
        ({"instruction": "question 0"}, "rows 1 and 2 have the same instruction"),
    ],
)
def test_a_file_that_holds_no_preferences_is_refused(changes, says, tmp_path):
    with pytest.raises(InputError, match=says):
        annotations_of(tmp_path, record(), record(**{"instruction": "question 1", **changes}))


def test_preferences_are_brought_into_the_order_of_the_baseline(tmp_path):
    records = [record(instruction=f"question {i}", output_1=f"good answer {i}") for i in (3, 0, 4)]
    found = annotations_of(tmp_path, *records)
    assert [a.pair.index for a in found] == [-1, -1, -1]
    ordered = in_order(found, BASELINE, tmp_path / "a.json", tmp_path / "b.json")
    assert [(a.pair.index, a.pair.instruction) for a in ordered] == [(i, f"question {i}") for i in (0, 3, 4)]


def test_preferences_between_other_answers_are_refused(tmp_path):
    a, b, o = (tmp_path / name for name in ("a.json", "b.json", "o.json"))
    with pytest.raises(InputError, match=r"a.json: output_1 of instruction 0 is not the answer in .*b.json"):
        in_order(annotations_of(tmp_path, record(output_1="other")), BASELINE, a, b)
    with pytest.raises(InputError, match=r"a.json: has an instruction that is not in .*b.json"):
        in_order(annotations_of(tmp_path, record(instruction="other")), BASELINE, a, b)
    with pytest.raises(InputError, match=r"a.json, row 1: output_2 is not the answer in .*o.json"):
        refuse_other_answers(annotations_of(tmp_path, record(output_2="other")), ANSWERS, a, o)
    refuse_other_answers(annotations_of(tmp_path, record()), ANSWERS, a, o)


def test_written_preferences_are_read_again_with_their_places(tmp_path):
    pairs = paired(BASELINE, ANSWERS, tmp_path)
    written = [Annotation(pair, ("baseline", "model"), 1.5, "judge") for pair in pairs]
    write_annotations(tmp_path / "a.json", written, [{"switched": True}] * 5)
    assert read_annotations(tmp_path / "a.json") == written


def test_the_embedded_questions_are_each_asked_once():
    assert len(embedded_baseline()) == len({output.instruction for output in embedded_baseline()}) == 20


def test_a_published_file_is_found_in_a_folder_its_subfolder_and_by_its_other_name(tmp_path):
    with pytest.raises(InputError, match=r"df_gamed\.csv is not in this folder"):
        locate(GAMED, tmp_path, tmp_path / "cache")
    inner = tmp_path / "alpaca_eval"
    inner.mkdir()
    (inner / "df_gamed_equivalent.csv").touch()
    assert locate(GAMED, tmp_path, tmp_path / "cache") == inner / "df_gamed_equivalent.csv"
    (tmp_path / "df_gamed.csv").touch()
    assert locate(GAMED, tmp_path, tmp_path / "cache") == tmp_path / "df_gamed.csv"
