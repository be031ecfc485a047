"""Figure 3: confidence by group or source, and what cannot be drawn."""

import json
import math

import numpy as np
import pytest

from scored import Row, write_first_epoch_run, write_scored_run
from sftmix.analysis import distributions
from sftmix.errors import InputError
from sftmix.reports.figures.confidence import confidence_by_group
from sftmix.reports.figures.scores import read_scored_run
from sftmix.reports.page import write_pages


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The bootstrap is tested with the statistics."""
    monkeypatch.setattr(distributions, "RESAMPLES", 50)


def rows_of(number=60, **columns):
    """Examples of the groups High and Low, whose log perplexities differ by one standard deviation."""
    generator = np.random.default_rng(0)
    rows = []
    for k in range(number):
        group = "High" if k % 2 else "Low"
        perplexity = math.exp(2 + 0.3 * generator.normal() - 0.3 * (group == "High"))
        rows.append(Row(f"Say {k}", f"{k}", [perplexity], group=group)._replace(**columns))
    return rows


def drawn(tmp_path, rows, by=None):
    written = write_scored_run(tmp_path, rows)
    return confidence_by_group(read_scored_run(str(written.run), tmp_path, "run"), by, tmp_path)


def test_the_overlap_of_two_groups_is_reported_and_drawn(tmp_path):
    page, folder = drawn(tmp_path, rows_of(400))
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["by"] == "group"
    assert numbers["groups"]["High"]["n"] == 200
    assert numbers["groups"]["High"]["median"] > numbers["groups"]["Low"]["median"]
    assert numbers["comparisons"]["High / Low"]["overlap"]["value"] == pytest.approx(0.617, abs=0.08)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")
    assert "High / Low" in write_pages([page], "text")


def test_the_same_numbers_give_the_same_files(tmp_path):
    contents = []
    for place in ("one", "two"):
        _, folder = drawn(tmp_path / place, rows_of(40))
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]


def test_sources_are_compared_if_there_are_no_groups(tmp_path):
    rows = [row._replace(group="", source=f"{row.group}.json") for row in rows_of()]
    page, _ = drawn(tmp_path, rows)
    assert page.head == [f"Figure 3: confidence by source of {page.head[0].split()[-1]}"]
    assert [row[0].text for row in page.blocks[0].rows] == ["High.json", "Low.json"]


@pytest.mark.parametrize(("by", "found"), [(None, "none"), ("group", "none"), ("source", r"rows.json \(60\)")])
def test_without_two_groups_there_is_one_line(tmp_path, by, found):
    with pytest.raises(InputError, match=f"expected two .* of at least 10 training examples, found {found}; .*columns"):
        drawn(tmp_path, rows_of(group=""), by)


def test_small_groups_are_named(tmp_path):
    rows = rows_of()
    page, _ = drawn(tmp_path, [*rows, Row("Say z", "z", [3.0], group="Tiny")])
    assert "not among the 8 largest, or under 10 examples: Tiny" in page.notes


def test_names_that_matplotlib_or_a_font_cannot_read_are_drawn(tmp_path):
    names = {"High": "$\\frac", "Low": "_\u4e2d\0" + "x" * 300}
    _, folder = drawn(tmp_path, [row._replace(group=names[row.group]) for row in rows_of(40)])  # warnings are errors
    assert (folder / "figure.png").is_file()


def test_infinite_perplexities_are_counted(tmp_path):
    rows = rows_of()
    page, folder = drawn(tmp_path, [*rows, *(Row(f"Inf {k}", "z", [math.inf], group="Low") for k in range(3))])
    assert any(note.startswith("3 examples have an infinite perplexity") for note in page.notes)
    assert json.loads((folder / "numbers.json").read_text())["groups"]["Low"]["n"] == 33


def test_a_group_of_equal_confidences_is_one_line(tmp_path):
    rows = [row._replace(perplexity=[2.0]) if row.group == "Low" else row for row in rows_of()]
    with pytest.raises(InputError, match="group Low has no two different finite confidences"):
        drawn(tmp_path, rows)


def test_ranks_of_a_first_epoch_are_one_line(tmp_path):
    rows = rows_of()
    run = write_first_epoch_run(tmp_path, rows, [(k + 0.5) / len(rows) for k in range(len(rows))])
    with pytest.raises(InputError, match="are ranks within windows of its first epoch, expected perplexities: choose"):
        confidence_by_group(read_scored_run(str(run), tmp_path, "run"), None, tmp_path)
