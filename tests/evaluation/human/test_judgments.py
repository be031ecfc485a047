"""Judgments are joined with the key of their page; invalid files are refused in one line."""

import json

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.human.annotator_page import build_pages
from sftmix.evaluation.human.judgments import read_judgments


def test_outcomes_are_those_of_a_whatever_side_it_was_on(folder, judged):
    outcomes = ["win", "lose", "tie", "win", "lose", "tie", "win", "win", "lose", "tie", "win", "lose"]
    key, judgments = read_judgments([judged(1, outcomes), judged(2, outcomes[:5])], folder.parent)
    assert key.names == ("sftmix", "ntp")
    assert [j.outcome for j in judgments] == outcomes + outcomes[:5]
    assert [j.annotator for j in judgments] == [1] * 12 + [2] * 5
    assert [j.seconds for j in judgments[:3]] == [1.0, 2.0, 3.0]
    assert {j.choice for j in judgments if j.outcome == "win"} == {"left", "right"}  # both sides occur


def test_the_annotator_is_that_of_the_page_not_that_of_the_file(folder, judged):
    _, judgments = read_judgments([judged(2, ["win"], annotator=7)], folder.parent)
    assert judgments[0].annotator == 2


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"page_sha256": "0" * 64}, r"comes from page 000000000000, expected a page that was built in .*human"),
        ({"page_sha256": None}, "has no page_sha256, expected a file that was downloaded from a page of suite=human"),
        ({"judgments": []}, "has no judgment, expected at least one"),
        ({"judgments": None}, "has no judgment, expected at least one"),
        ({"judgments": [3]}, "judgment 1: 3, expected an object"),
        ({"judgments": [{"id": "nobody", "choice": "tie", "ms": 1}]}, "id 'nobody', expected one of the 12 items"),
        ({"judgments": [{"id": ["x"], "choice": "tie", "ms": 1}]}, "expected one of the 12 items"),
    ],
)
def test_a_file_of_something_else_is_one_line(changed, says, folder, judged):
    with pytest.raises(InputError, match=says):
        read_judgments([judged(1, ["win"], **changed)], folder.parent)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("choice", "both", "judgment 2: choice 'both', expected left, tie, right"),
        ("choice", None, "judgment 2: choice None, expected left, tie, right"),
        ("choice", ["left"], "expected left, tie, right"),
        ("ms", -1, "judgment 2: ms -1, expected a number of milliseconds"),
        ("ms", float("nan"), "ms nan, expected a number of milliseconds"),
        ("ms", None, "ms None, expected a number of milliseconds"),
        ("ms", True, "ms True, expected a number of milliseconds"),
    ],
)
def test_the_error_on_an_invalid_judgment_names_its_row(field, value, says, folder, judged):
    file = judged(1, ["win", "lose"])
    content = json.loads(file.read_text())
    content["judgments"][1][field] = value
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=says):
        read_judgments([file], folder.parent)


def test_an_item_that_is_judged_twice_is_an_error(folder, judged):
    file = judged(1, ["win"])
    content = json.loads(file.read_text())
    content["judgments"] *= 2
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"judgment 2: item .* has an earlier judgment"):
        read_judgments([file], folder.parent)


def test_the_same_file_or_page_twice_is_an_error(folder, judged):
    file = judged(1, ["win"])
    with pytest.raises(InputError, match=r"judgments-annotator-1\.json is given twice"):
        read_judgments([file, file], folder.parent)
    later = judged(1, ["win", "tie"], "judgments-annotator-1 (1).json")
    with pytest.raises(InputError, match="come from one page, expected only the later file"):
        read_judgments([file, later], folder.parent)


def test_pages_that_were_built_apart_are_not_added_up(folder, judged, pairs, tmp_path):
    ours = judged(1, ["win"])
    build_pages(folder.parent, pairs[:6], names=("sftmix", "other"), annotators=1, seed=0, record={})
    other = next(f for f in folder.parent.glob("*/key.json") if f.parent != folder)
    sha256, page = next(iter(json.loads(other.read_text())["pages"].items()))
    content = {"page_sha256": sha256, "judgments": [{"id": next(iter(page["left"])), "choice": "tie", "ms": 1}]}
    (tmp_path / "other.json").write_text(json.dumps(content))
    read_judgments([tmp_path / "other.json"], folder.parent)
    with pytest.raises(InputError, match="come from pages of separate builds"):
        read_judgments([ours, tmp_path / "other.json"], folder.parent)


def test_files_that_cannot_be_read_are_one_line(folder, judged, tmp_path):
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        read_judgments([tmp_path / "absent.json"], folder.parent)
    file = judged(1, ["win"])
    whole = file.read_text()
    file.write_text(whole[:40])
    with pytest.raises(InputError, match="not JSON"):
        read_judgments([file], folder.parent)
    file.write_text(whole)
    (folder / "key.json").write_text('{"pages": {}}')
    with pytest.raises(InputError, match=r"key\.json: not a key of pages"):
        read_judgments([file], folder.parent)
