"""Published questions as they are read: counts, right answers, and what is wrong with a file."""

import json
from collections import Counter

import pytest

from sftmix.data.sources import read_file
from sftmix.errors import InputError
from sftmix.evaluation.medical.benchmarks import read_questions
from sftmix.evaluation.medical.questions import (
    LETTERS,
    Item,
    json_object,
    read_medmcqa,
    read_medqa,
    read_pubmedqa,
)

MEDQA = {"question": "Q?", "options": {"A": "a", "B": "b", "C": "c", "D": "d"}, "answer_idx": "C"}
MEDMCQA = {"id": "x", "question": "Q?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 3}
LABELLED = {
    "11": {"QUESTION": "One?", "CONTEXTS": ["First.", "Second."], "final_decision": "yes"},
    "22": {"QUESTION": "Two?", "CONTEXTS": ["Third."], "final_decision": "maybe"},
    "33": {"QUESTION": "Three?", "CONTEXTS": ["Fourth."], "final_decision": "no"},
}


def written(file, *records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def written_pubmedqa(folder, labelled=LABELLED, truth=None):
    (folder / "ori_pqal.json").write_text(json.dumps(labelled))
    (folder / "test_ground_truth.json").write_text(json.dumps(truth or {"33": "no", "11": "yes"}))
    file = folder / "ori_pqal.json"
    return json_object(file), str(file), folder / "test_ground_truth.json"


@pytest.mark.parametrize(
    ("benchmark", "num_test", "answers"),
    [
        ("MedQA", 1273, {"A": 353, "B": 309, "C": 346, "D": 265}),
        ("MedQA-5", 1273, {"A": 273, "B": 277, "C": 252, "D": 269, "E": 202}),
        ("MedMCQA", 4183, {"A": 1348, "B": 1085, "C": 925, "D": 825}),
        ("PubMedQA", 500, {"A": 276, "B": 169, "C": 55}),
    ],
)
def test_the_published_files_have_their_counts_and_answers(benchmark, num_test, answers, shared, tmp_path):
    found = read_questions(benchmark, "held_out", shared / "data" / "bench", tmp_path)
    held_out = [] if benchmark == "PubMedQA" else found.pool
    rows = [*found.test, *held_out]
    assert len(rows) == num_test
    assert Counter(LETTERS[row.answer] for row in rows) == answers
    assert found.num_left_out == 0


def test_the_commonest_answer_of_pubmedqa_is_right_in_55_2_percent(shared, tmp_path):
    found = read_questions("PubMedQA", "train", shared / "data" / "bench", tmp_path)
    assert Counter(row.options[row.answer] for row in found.test)["yes"] / len(found.test) == 0.552
    assert len(found.pool) == 500
    assert not {row.id for row in found.test} & {row.id for row in found.pool}
    beginning = Counter(row.answer for row in found.test[:50])
    assert max(beginning.values()) < 30, "the first questions are sorted by answer"


def test_the_right_option_of_medmcqa_counts_from_1_in_lines_and_from_0_on_the_hub(tmp_path):
    import pyarrow
    from pyarrow import parquet

    lines, table = tmp_path / "lines", tmp_path / "table"
    for folder in (lines, table):
        folder.mkdir()
        written(folder / "medmcqa_train.jsonl", MEDMCQA | {"id": "y", "question": "Another?"})
    written(lines / "medmcqa_dev.jsonl", MEDMCQA)
    parquet.write_table(pyarrow.Table.from_pylist([MEDMCQA | {"cop": 2}]), table / "medmcqa_dev.parquet")
    for folder in (lines, table):
        found = read_questions("MedMCQA", "train", folder, tmp_path)
        assert found.test == [Item("x", None, "Q?", ("a", "b", "c", "d"), 2)]


def test_the_hubs_list_of_options_is_the_publishers_object(tmp_path):
    listed = MEDQA | {"options": [{"key": k, "value": v} for k, v in MEDQA["options"].items()]}
    one, two = written(tmp_path / "a.jsonl", MEDQA), written(tmp_path / "b.jsonl", listed)
    assert read_medqa(read_file(one), 4) == read_medqa(read_file(two), 4)


def test_a_questions_id_does_not_depend_on_its_place_in_the_file(tmp_path):
    other = MEDQA | {"question": "Other?"}
    one = read_medqa(read_file(written(tmp_path / "a.jsonl", MEDQA, other)), 4)
    two = read_medqa(read_file(written(tmp_path / "b.jsonl", other, MEDQA)), 4)
    assert one.rows == two.rows[::-1]


def test_pubmedqas_pool_is_what_is_no_test(tmp_path):
    test, pool = read_pubmedqa(*written_pubmedqa(tmp_path))
    assert [(row.id, row.answer) for row in test] == [("11", 0), ("33", 1)]
    assert pool == [Item("22", "Third.", "Two?", ("yes", "no", "maybe"), 2)]
    assert test[0].context == "First.\nSecond."


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (MEDQA | {"answer_idx": "E"}, "line 2: answer_idx is E, expected one of A, B, C, D"),
        (MEDQA | {"answer_idx": ""}, "line 2: answer_idx is , expected one of A, B, C, D"),
        (MEDQA | {"options": {"A": "a"}}, "line 2: options A, expected A, B, C, D"),
        (MEDQA | {"question": None}, "line 2: NoneType instead of a text, expected a question as published"),
        ({"question": "Q?"}, "line 2: no field 'options', expected a question as published"),
        (["Q?"], "line 2: list indices must be integers or slices, not str, expected a question"),
        (MEDQA, "is repeated"),
    ],
)
def test_a_row_that_is_no_medqa_question_is_one_line(row, says, tmp_path):
    with pytest.raises(InputError, match="line 2") as refused:
        read_medqa(read_file(written(tmp_path / "m.jsonl", MEDQA, row)), 4)
    assert says in str(refused.value)


@pytest.mark.parametrize("cop", [0, 5, -1, True, "a", None])
def test_a_row_without_a_right_option_is_one_line(cop, tmp_path):
    with pytest.raises(InputError, match=r"m.jsonl, line 1: cop is .*, expected one of 1, 2, 3, 4"):
        read_medmcqa(read_file(written(tmp_path / "m.jsonl", MEDMCQA | {"cop": cop})), 1)


@pytest.mark.parametrize(
    ("labelled", "truth", "says"),
    [
        (LABELLED, {"44": "yes"}, "44 is not a question of"),
        (LABELLED, {"11": "no"}, "contradicts"),
        ({"11": {"QUESTION": "?"}}, {"11": "no"}, "ori_pqal.json, 11: no field 'CONTEXTS'"),
        ([1], {"11": "no"}, "list, expected an object"),
    ],
)
def test_pubmedqa_files_that_contradict_each_other_are_one_line(labelled, truth, says, tmp_path):
    with pytest.raises(InputError, match=r"ori_pqal|test_ground_truth") as refused:
        read_pubmedqa(*written_pubmedqa(tmp_path, labelled, truth))
    assert says in str(refused.value)


def test_a_question_of_the_test_is_no_shot_even_where_the_train_file_has_it(tmp_path):
    test = MEDQA | {"question": "Asked?"}
    again = test | {"options": dict(zip("ABCD", "dcba", strict=True)), "answer_idx": "B"}
    written(tmp_path / "medqa_us_4options_test.jsonl", test)
    written(tmp_path / "medqa_us_4options_train.jsonl", MEDQA, again)
    found = read_questions("MedQA", "train", tmp_path, tmp_path)
    assert [row.question for row in found.pool] == ["Q?"]
    assert found.num_left_out == 1


def test_without_the_train_part_a_way_out_is_named(tmp_path):
    written(tmp_path / "medmcqa_dev.jsonl", *(MEDMCQA | {"id": str(k), "question": f"{k}?"} for k in range(203)))
    with pytest.raises(InputError, match=r"medmcqa_train.jsonl is not in this folder .*suite.pool=held_out"):
        read_questions("MedMCQA", "train", tmp_path, tmp_path)
    found = read_questions("MedMCQA", "held_out", tmp_path, tmp_path)
    assert found.name == "MedMCQA, last 200 as shots"
    assert [row.id for row in found.test] == ["0", "1", "2"]
    assert len(found.pool) == 200


def test_of_a_repeated_question_the_pool_keeps_the_first_and_a_test_is_refused(tmp_path):
    other = MEDQA | {"question": "Other?"}
    written(tmp_path / "medqa_us_4options_test.jsonl", MEDQA | {"question": "Asked?"})
    written(tmp_path / "medqa_us_4options_train.jsonl", MEDQA, other, MEDQA | {"answer_idx": "A"}, other, other)
    found = read_questions("MedQA", "train", tmp_path, tmp_path)
    assert {row.question: row.answer for row in found.pool} == {"Q?": 2, "Other?": 2}
    assert (len(found.pool), found.num_repeats) == (2, 3)
    written(tmp_path / "medqa_us_4options_test.jsonl", MEDQA, other, MEDQA)
    with pytest.raises(InputError, match=r"_test.jsonl, line 3: question \w+ is repeated"):
        read_questions("MedQA", "train", tmp_path, tmp_path)
