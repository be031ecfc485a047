"""Numbers of a data map, against SciPy and by hand."""

import numpy as np
import pytest
from scipy import stats

from scored import Row, write_scored_run
from sftmix.analysis.scored_examples import read_scored_examples
from sftmix.reports.data_map import findings
from sftmix.reports.data_map.findings import length_correlations, repeated_prompts


def read(tmp_path, rows, **more):
    return read_scored_examples(write_scored_run(tmp_path, rows, **more).run, tmp_path)


def test_length_is_correlated_over_all_and_within_each_subset(tmp_path):
    rows = [
        Row("a", "1", (2.0,), num_tokens=1, subset="confident"),
        Row("b", "2", (3.0,), num_tokens=2, subset="confident"),
        Row("c", "3", (5.0,), num_tokens=9, subset="unconfident"),
        Row("d", "4", (4.0,), num_tokens=8, subset="unconfident"),
        Row("e", "5", (9.0,), num_tokens=5, subset="unconfident"),
    ]
    examples = read(tmp_path, rows)
    found = length_correlations(examples)
    expected = stats.spearmanr([-2, -3, -5, -4, -9], [1, 2, 9, 8, 5]).statistic
    assert found == {
        "all": pytest.approx(expected),
        "confident": pytest.approx(-1),
        "unconfident": pytest.approx(stats.spearmanr([-5, -4, -9], [9, 8, 5]).statistic),
    }


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [np.nan, np.nan]])
def test_the_correlation_of_equal_values_is_not_defined(tmp_path, values):
    rows = [Row(f"Q{k}", "r", (value,), num_tokens=k + 1) for k, value in enumerate(values)]
    assert length_correlations(read(tmp_path, rows)) == dict.fromkeys(("all", "confident", "unconfident"))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_value_that_is_not_finite_has_the_lowest_confidence_or_is_left_out(tmp_path, value):
    rows = [Row("a", "1", (value,), num_tokens=9), Row("b", "2", (4.0,), num_tokens=5), Row("c", "3", (2.0,))]
    assert length_correlations(read(tmp_path, rows))["all"] == pytest.approx(-1)


def test_prompts_that_have_different_answers_are_found(tmp_path, monkeypatch):
    rows = [
        Row("Name a  color.", "Blue", (2.0,)),
        Row("name a color", "Red", (8.0,)),
        Row("Name a color!", "blue.", (3.0,)),
        Row("Say hello", "Hello", (1.0,)),
        Row("say hello.", "hello", (9.0,)),  # the same answer
        Row("1 - 1", "0", (2.0,)),
        Row("1 + 1", "2", (2.0,)),
        Row("", "a", (2.0,)),
        Row(" ", "b", (2.0,)),
        Row("Jump", "up", (1.0,)),
        Row("jump", "down", (99.0,)),
    ]
    examples = read(tmp_path, rows)
    assert repeated_prompts(examples) == {"prompts": 2, "examples": 5, "groups": [[9, 10], [0, 1, 2]]}
    monkeypatch.setattr(findings, "MOST_PROMPTS", 1)
    assert repeated_prompts(examples) == {"prompts": 2, "examples": 5, "groups": [[9, 10]]}


def test_cut_prompts_and_later_turns_are_not_compared(tmp_path):
    rows = [Row("go on " * 60, "a", (2.0,)), Row("go on " * 60, "b", (3.0,))]
    assert repeated_prompts(read(tmp_path / "whole", rows))["prompts"] == 1
    assert repeated_prompts(read(tmp_path / "cut", rows, prepared=False))["prompts"] == 0
    from dataclasses import replace

    examples = read(tmp_path / "turns", rows)
    assert repeated_prompts(replace(examples, turn=np.array([1, 2])))["prompts"] == 0
