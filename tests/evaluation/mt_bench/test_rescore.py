"""A foreign judgments file, by FastChat's rule: all rows but those of -1, repeated ones not put together."""

import json

import pytest

from sftmix.errors import InputError
from sftmix.evaluation.mt_bench.rescore import read_judgments, rescore


def row(question, turn, score, model="llama", judge=("gpt-4", "single-v1")):
    return {"question_id": question, "model": model, "judge": judge, "user_prompt": "", "judgment": "",
            "score": score, "turn": turn, "tstamp": 1.5}  # fmt: skip


def file_of(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_failed_rows_are_left_out_and_repeated_ones_counted_again(tmp_path):
    rows = [row(81, 1, 8), row(82, 1, -1), row(82, 1, 5.5), row(81, 1, 10), row(81, 2, 3), row(82, 2, 6)]
    (found,) = rescore(read_judgments(file_of(tmp_path / "judgments.jsonl", rows)))
    # by hand: (8 + 5.5 + 10) / 3, (3 + 6) / 2, (8 + 5.5 + 10 + 3 + 6) / 5
    assert found.means == pytest.approx({"ST": 23.5 / 3, "MT": 4.5, "overall": 6.5})
    assert found.counts == {"ST": 3, "MT": 2, "overall": 5}
    assert (found.dropped, found.repeated) == (1, 2)


def test_pandas_as_fastchat_uses_it_gives_the_same(tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [row(81 + i % 80, 1 + i % 2, [-1, 7, 8.5, 3, 10][i * i % 5], model=f"model {i % 3}") for i in range(331)]
    path = file_of(tmp_path / "judgments.jsonl", rows)
    frame = pandas.read_json(path, lines=True)[["model", "score", "turn"]]
    frame = frame[frame["score"] != -1]
    by_turn = frame.groupby(["model", "turn"])["score"].mean()
    overall = frame.groupby("model")["score"].mean()
    found = rescore(read_judgments(path))
    assert {scores.model for scores in found} == set(overall.index)
    assert [scores.means["overall"] for scores in found] == sorted(overall, reverse=True)
    for scores in found:
        assert scores.means["ST"] == pytest.approx(by_turn[scores.model, 1], abs=1e-12)
        assert scores.means["MT"] == pytest.approx(by_turn[scores.model, 2], abs=1e-12)
        assert scores.means["overall"] == pytest.approx(overall[scores.model], abs=1e-12)


def test_no_average_is_over_two_judges(tmp_path):
    rows = [row(81, 1, 8), row(81, 1, 2, judge=["gpt-4.1", "single-v1"]), row(101, 1, 6, judge=["gpt-4", "math"])]
    found = rescore(read_judgments(file_of(tmp_path / "judgments.jsonl", rows)))
    assert [(scores.judge, scores.means["ST"]) for scores in found] == [("gpt-4", 7), ("gpt-4.1", 2)]


def test_a_turn_without_ratings_has_no_mean(tmp_path):
    (found,) = rescore(read_judgments(file_of(tmp_path / "judgments.jsonl", [row(81, 1, 8), row(81, 2, -1)])))
    assert found.means == {"ST": 8, "overall": 8}
    assert found.counts == {"ST": 1, "MT": 0, "overall": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty, expected rows"),
        ('{"question_id": 81, "model": "m", "turn": 1, "score": 8}\n{"question', "line 2: not JSON"),
        ('{"question_id": 81, "model": "m", "turn": 3, "score": 8}', "line 1: model m, turn 3, score 8, expected"),
        ('{"question_id": 81, "model": "m", "turn": 1, "score": "8"}', "line 1: model m, turn 1, score 8, expected"),
        ('{"question_id": 81, "model": "m", "turn": 1, "score": NaN}', "score nan"),
        ('{"question_id": 81, "g1_winner": "model_1", "turn": 1}', "line 1: model None, turn 1, score None"),
        ("[]", "no rows, expected at least one"),
        ('{"model": "m", "turn": 1, "score": 8}\n[]', "line 2: [], expected a JSON object"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(text, says, tmp_path):
    path = tmp_path / "judgments.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_judgments(path)
    assert says in str(caught.value)
