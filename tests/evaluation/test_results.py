"""Results are read as they were written; rounds under other settings are removed."""

import json
from dataclasses import replace

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.results import (
    EVALUATION,
    Evaluation,
    part_name,
    read_evaluations,
    wilson_interval,
    write_evaluations,
)


def found(round: int, *, judge: str | None = "a judge", seed: int = 0, **scores: float) -> Evaluation:
    return Evaluation(
        "mt_bench",
        judge,
        "MT-Bench",
        round,
        scores or {"ST": 5.5},
        {"ST": {"81": 5.0, "82": 6.0}},
        {"questions": 2},
        {"date": "today"},
        {"seed": seed},
    )


def test_what_was_written_is_read(tmp_path):
    write_evaluations(tmp_path / EVALUATION, [found(1), found(2), found(1, judge=None)])
    read = read_evaluations(tmp_path)
    assert len(read) == 3
    assert all(e in read for e in (found(1), found(2), found(1, judge=None)))


def test_the_same_round_replaces_the_older_one(tmp_path):
    write_evaluations(tmp_path / EVALUATION, [found(1, ST=3.0)])
    write_evaluations(tmp_path / EVALUATION, [found(1, ST=4.0)])
    assert [e.scores for e in read_evaluations(tmp_path)] == [{"ST": 4.0}]


def test_other_rounds_are_kept_only_under_the_same_settings(tmp_path):
    write_evaluations(tmp_path / EVALUATION, [found(k) for k in (1, 2, 3)] + [found(2, judge="another")])
    write_evaluations(tmp_path / EVALUATION, [found(1)])
    assert len(read_evaluations(tmp_path)) == 4
    write_evaluations(tmp_path / EVALUATION, [found(1, seed=7)])
    assert sorted((e.judge, e.round, e.settings["seed"]) for e in read_evaluations(tmp_path)) == [
        ("a judge", 1, 7),
        ("another", 2, 0),
    ]


WEIGHTED = replace(found(1), weights={"ST": {"81": 3.0, "82": 1.0}})


def test_weights_are_read_as_they_were_written_and_are_of_no_column_where_there_are_none(tmp_path):
    write_evaluations(tmp_path / EVALUATION, [WEIGHTED])
    (file,) = (tmp_path / EVALUATION).iterdir()
    assert read_evaluations(tmp_path) == [WEIGHTED]
    content = json.loads(file.read_text())
    del content["weights"]  # as before there were any
    file.write_text(json.dumps(content))
    assert read_evaluations(tmp_path) == [found(1)]


@pytest.mark.parametrize(
    "weights",
    [{"ST": {"81": 3.0}}, {"ST": {"81": 3.0, "82": 0.0}}, {"ST": {"81": 3.0, "82": float("nan")}}, {"MT": {"81": 1.0}}],
)
def test_weights_of_other_questions_are_an_error(tmp_path, weights):
    write_evaluations(tmp_path / EVALUATION, [replace(WEIGHTED, weights=weights)])
    with pytest.raises(InputError, match=r"round1\.json: weights of (ST|MT): expected one weight above 0 for each"):
        read_evaluations(tmp_path)


def test_a_part_of_a_benchmark_has_another_name():
    assert part_name("MT-Bench", None, 80) == part_name("MT-Bench", 80, 80) == "MT-Bench"
    assert part_name("MT-Bench", 5, 80) == "MT-Bench, first 5 of 80"


@pytest.mark.parametrize("content", ["", "[]", '{"suite": "mt_bench"}', '{"suite": 1}'])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / EVALUATION).mkdir()
    (tmp_path / EVALUATION / "x.json").write_text(content)
    with pytest.raises(
        InputError,
        match=r"x\.json: (is not an evaluation|is damaged).*; delete this file and run the suite",
    ):
        read_evaluations(tmp_path)


def test_the_interval_is_wilsons():
    low, high = wilson_interval(28, 50)  # 28 of 50, worked by hand from the formula
    z, n, p = 1.959963985, 50, 0.56
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (low, high) == pytest.approx(
        (100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n))
    )
    assert (round(low), round(high)) == (42, 69)
