"""report.py topics=: terms and kinds of the most and least confident examples, and labels that are read back."""

import csv
import json

import numpy as np
import pytest

from scored import Row, write_scored_run
from sftmix.errors import InputError
from sftmix.reports.figures.scores import extremes, read_scored_run
from sftmix.reports.page import write_pages
from sftmix.reports.topics import label_shares, topics

GRAMMAR = [Row(f"Correct the grammar of sentence {k}", f"It is {k}.", [1.0 + k / 100]) for k in range(20)]
POEMS = [Row(f"Write a poem, number {k}", f"Rose {k}.", [9.0 + k / 100]) for k in range(20)]


@pytest.fixture
def scored(tmp_path):
    return read_scored_run(str(write_scored_run(tmp_path, [*POEMS, *GRAMMAR]).run), tmp_path, "topics")


def fill(folder, label):
    """Fill in the labels of a folder by a function of the instruction, and return the file."""
    with (folder / "labels.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    file = folder.parent / "filled.csv"
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows({**row, "label": label(row["instruction"])} for row in rows)
    return file


def test_the_topics_of_two_kinds_are_told_apart(scored, tmp_path):
    page, folder = topics(scored, 10, None, tmp_path)
    text = write_pages([page], "text")
    assert "10 most and 10 least confident" in text
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["verbs"] == {"most confident": [["correct", 10]], "least confident": [["write", 10]]}
    assert numbers["verbs_with_objects"]["least confident"] == [["write poem", 10]]
    assert numbers["kinds"]["least confident"]["creative"]["value"] == 1.0
    assert numbers["kinds"]["most confident"]["creative"]["value"] == 0.0
    assert {term["term"] for term in numbers["terms"]["most confident"]} >= {"grammar"}
    assert "| correct | 100.0% |" in (folder / "numbers.md").read_text().replace("\\", "")


def test_the_file_for_labels_hides_the_subset(scored, tmp_path):
    _, folder = topics(scored, 10, None, tmp_path)
    with (folder / "labels.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["example_id", "instruction", "response", "label"]
    assert {row["label"] for row in rows} == {""}
    assert {row["example_id"] for row in rows} == {row.id for row in (*POEMS, *GRAMMAR)}
    is_poem = np.array(["poem" in row["instruction"] for row in rows])
    assert 0 < is_poem[:20].sum() < 20, "neither subset comes first"


def test_labels_that_were_filled_in_are_not_overwritten(scored, tmp_path):
    _, folder = topics(scored, 10, None, tmp_path)
    (folder / "labels.csv").write_text("mine")
    topics(scored, 10, None, tmp_path)
    assert (folder / "labels.csv").read_text() == "mine"


def test_labels_are_read_back_by_subset(scored, tmp_path):
    _, folder = topics(scored, 10, None, tmp_path)
    file = fill(folder, lambda text: "creative" if "poem" in text else "" if text.endswith("7") else "grammar")
    page, folder = label_shares(scored, file, tmp_path)
    shares = json.loads((folder / "numbers.json").read_text())["shares"]
    assert shares["least confident"]["creative"] == {
        "value": 1.0,
        "low": pytest.approx(0.839, abs=1e-3),
        "high": 1.0,
        "n": 20,
    }
    assert shares["most confident"]["grammar"]["n"] == 18
    assert "2 rows without a label" in page.notes


def test_a_label_of_a_text_of_a_million_characters_is_read_back(tmp_path):
    rows = [*GRAMMAR[:2], Row("Say x", "x" * 1_000_000, [9.0])]
    scored = read_scored_run(str(write_scored_run(tmp_path, rows).run), tmp_path, "topics")
    _, folder = topics(scored, 1, None, tmp_path)
    filled = (folder / "labels.csv").read_bytes().replace(b",\r\n", b",mine\r\n")
    (tmp_path / "filled.csv").write_bytes(filled)
    page, _ = label_shares(scored, tmp_path / "filled.csv", tmp_path)
    assert page.head[0].startswith("Labels of 2 examples")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,label\n1,x\n", "expected the columns example_id and label, found id, label"),
        ("", "expected the columns example_id and label, found no row"),
        ("label,example_id\na\n", "1 of 1 ids are not of sftmix-x-.*, first "),
        ("example_id,label\nabc,x\n", "1 of 1 ids are not of sftmix-x-.*, first abc"),
        (f"example_id,label\n{POEMS[0].id},\n", "the column label is empty in all 1 row"),
        (f"example_id,label\n{POEMS[0].id},a\n{POEMS[0].id},b\n", f"example {POEMS[0].id} is in several rows"),
    ],
)
def test_a_wrong_file_of_labels_is_one_line(scored, tmp_path, content, says):
    (tmp_path / "own.csv").write_text(content)
    with pytest.raises(InputError, match=rf"labels=.*own\.csv: .*{says}"):
        label_shares(scored, tmp_path / "own.csv", tmp_path)


def test_a_missing_file_of_labels_is_one_line(scored, tmp_path):
    with pytest.raises(InputError, match="cannot be read, expected a CSV file"):
        label_shares(scored, tmp_path / "none.csv", tmp_path)


def test_examples_without_a_common_term_have_no_table_of_terms(tmp_path):
    rows = [Row(f"{word} it", "x", [k + 1.0]) for k, word in enumerate(("Go", "Do"))]
    scored = read_scored_run(str(write_scored_run(tmp_path, rows).run), tmp_path, "topics")
    page, _ = topics(scored, 10, None, tmp_path)
    assert not [block for block in page.blocks if block.title.startswith("Terms")]


def test_shortened_texts_are_reported(tmp_path):
    rows = [Row(f"{k} " + "long " * 100, "x", [k + 1.0]) for k in range(4)]
    written = write_scored_run(tmp_path, rows, prepared=False)
    page, _ = topics(read_scored_run(str(written.run), tmp_path, "topics"), 10, None, tmp_path)
    assert "4 texts are cut after 300 characters: the prepared data of the run is gone" in page.notes


def test_extremes_are_half_of_the_examples_at_most(scored):
    chosen = extremes(scored, 2500)
    assert len(chosen.confident) == len(chosen.unconfident) == 20
    assert scored.examples.ids[chosen.confident[0]] == GRAMMAR[0].id
    assert scored.examples.ids[chosen.unconfident[0]] == POEMS[19].id


def test_equal_confidences_have_no_extremes(tmp_path):
    rows = [Row(f"Say {k}", "x", [2.0]) for k in range(4)]
    scored = read_scored_run(str(write_scored_run(tmp_path, rows).run), tmp_path, "topics")
    with pytest.raises(InputError, match="all 4 confidences are -2: none is more confident"):
        extremes(scored, 1)


def test_confidences_that_are_not_numbers_are_refused(tmp_path):
    rows = [Row("Say a", "x", [2.0]), Row("Say b", "x", [float("nan")]), Row("Say c", "x", [float("inf")])]
    written = write_scored_run(tmp_path, rows)
    with pytest.raises(InputError, match="1 of 3 confidences are NaN, expected numbers"):
        read_scored_run(str(written.run), tmp_path, "topics")


def test_one_training_example_is_refused(tmp_path):
    rows = [Row("Say a", "x", [2.0]), Row("Say b", "x", [3.0], part="val")]
    written = write_scored_run(tmp_path, rows)
    with pytest.raises(InputError, match="1 scored training example, expected at least 2"):
        read_scored_run(str(written.run), tmp_path, "topics")
