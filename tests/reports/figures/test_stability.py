"""report.py stability=: runs, checkpoints and rules beside a run, on the examples that both have."""

import csv
import json
import math

import numpy as np
import pytest

from scored import Row, write_scored_run
from sftmix.analysis import stability as statistics
from sftmix.errors import ConfigError, InputError
from sftmix.reports.figures.stability import stability
from sftmix.reports.page import write_pages


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The bootstrap is tested with the statistics."""
    monkeypatch.setattr(statistics, "RESAMPLES", 50)


def write(root, perplexities, *, first=0, name="sftmix-x"):
    """Write a run whose examples are numbered from `first`, and return its folder."""
    rows = [
        Row(f"Say {k}", "x", list(map(float, values)), num_tokens=1 + k % 7)
        for k, values in enumerate(perplexities, start=first)
    ]
    return str(write_scored_run(root, rows, prepared=False, name=name).run)


@pytest.fixture
def values():
    return np.exp(np.random.default_rng(0).normal(1.5, 0.3, size=(60, 3)))


def rows_of(folder):
    return {row["split"]: row for row in json.loads((folder / "numbers.json").read_text())["rows"]}


def test_checkpoints_and_rules_are_beside_the_confidence_of_all(values, tmp_path):
    page, folder = stability([write(tmp_path, values), "random", "length"], tmp_path)
    rows = rows_of(folder)
    assert list(rows) == [
        "last 1 of 3 checkpoints",
        "last 2 of 3 checkpoints",
        "checkpoint 1 only",
        "checkpoint 2 only",
        "split.by=random split.seed=0",
        "split.by=length",
    ]
    last = values[:, 2] <= np.median(values[:, 2])
    full = values.mean(axis=1) <= np.median(values.mean(axis=1))
    assert rows["last 1 of 3 checkpoints"]["agreement"]["value"] == pytest.approx((last == full).mean())
    share = (last == full).mean()
    assert rows["last 1 of 3 checkpoints"]["crossing"]["value"] == pytest.approx(share**2 + (1 - share) ** 2)
    assert abs(rows["split.by=length"]["rho"]["value"]) < 0.3
    assert (folder / "figure.pdf").is_file()
    assert "What decides the confidence" in write_pages([page], "markdown")
    assert not (folder / "probability.csv").exists(), "one run has no probability"


def test_runs_are_compared_on_the_examples_that_both_have(values, tmp_path):
    one, other = write(tmp_path / "a", values), write(tmp_path / "b", values[::-1], first=20, name="sftmix-y")
    page, folder = stability([one, other], tmp_path)
    row = next(iter(rows_of(folder).values()))
    assert (row["shared"], row["unshared"]) == (40, 40)
    assert any("40 examples are only in one of the two" in note for note in page.notes)
    with (folder / "probability.csv").open(newline="") as handle:
        probability = [float(line["probability_confident"]) for line in csv.DictReader(handle)]
    assert len(probability) == 40
    assert np.mean(probability) == 0.5
    shares = json.loads((folder / "numbers.json").read_text())["agreement_of_all"]
    assert shares["neither"] == np.mean([p == 0.5 for p in probability])


def test_folders_with_the_same_scores_count_once(values, tmp_path):
    one, other = write(tmp_path / "a", values), write(tmp_path / "b", values, name="sftmix-y")
    _, folder = stability([one, other], tmp_path)
    row = next(iter(rows_of(folder).values()))
    assert row["agreement"]["value"] == row["rho"]["value"] == row["crossing_tokens"] == pytest.approx(1.0)
    assert not (folder / "probability.csv").exists()


def test_infinite_perplexities_are_the_least_confident(values, tmp_path):
    values[:2] = math.inf
    page, folder = stability([write(tmp_path, values), "length"], tmp_path)
    assert any("2 examples have an infinite perplexity" in note for note in page.notes)
    assert sum(
        json.loads((folder / "numbers.json").read_text())["dominance"].popitem()[1]["checkpoints"]
    ) == pytest.approx(1)


def test_what_is_not_defined_is_a_dash(values, tmp_path):
    rows = [Row(f"Say {k}", "x", list(map(float, v))) for k, v in enumerate(values)]  # all of the same length
    page, _ = stability([str(write_scored_run(tmp_path, rows).run), "length"], tmp_path)
    assert "nan" not in write_pages([page], "text")


def test_runs_without_shared_examples_are_one_line(values, tmp_path):
    one, other = write(tmp_path / "a", values), write(tmp_path / "b", values, first=500, name="sftmix-y")
    with pytest.raises(InputError, match="share 0 scored training examples, expected at least 4: are they of the same"):
        stability([one, other], tmp_path)


def test_equal_confidences_are_one_line(tmp_path):
    with pytest.raises(InputError, match="all confidences are equal, so ids would decide the split"):
        stability([write(tmp_path, [[2.0]] * 8)], tmp_path)


@pytest.mark.parametrize("given", [[], ["random"], ["length", "nosuch"]])
def test_the_first_is_a_run(given, tmp_path):
    with pytest.raises(ConfigError, match=r"stability=\[.*\]: expected a run first"):
        stability(given, tmp_path)
