"""A round that was stopped goes on, and what was scored once is not scored again."""

import pytest

from sftmix.evaluation.medical.prompts import MedicalPrompt
from sftmix.evaluation.medical.rounds import CHUNK, chance_of_letters, prompts_sha256, score_round, wilson_interval
from sftmix.evaluation.medical.scorer import Scored


class Counting:
    """Scores by the length of a prompt, and keeps what it was asked; it can be killed at a call."""

    def __init__(self, killed_at=None):
        self.asked, self.calls, self.killed_at = [], 0, killed_at

    def score(self, prompts):
        self.calls += 1
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        self.asked += [p.id for p in prompts]
        return [Scored((-float(len(p.text)), -1.0), p.answer == 1, False) for p in prompts]


def prompts(num, text="text"):
    return [MedicalPrompt(f"q{k}", f"{text} {k}", ("A", "B"), k % 2, ()) for k in range(num)]


def scored(asked, scorer, tmp_path):
    return score_round(asked, scorer, tmp_path / "r.jsonl", title="MedQA", show_progress=False)


def test_a_killed_round_goes_on_where_it_was(tmp_path):
    every = prompts(3 * CHUNK)
    killed = Counting(killed_at=3)
    with pytest.raises(KeyboardInterrupt):
        scored(every, killed, tmp_path)
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"key": "torn')
    rest = Counting()
    found = scored(every, rest, tmp_path)
    assert killed.asked + rest.asked == [p.id for p in every]
    assert found == scored(every, Counting(killed_at=1), tmp_path)
    assert found == [Scored((-float(len(p.text)), -1.0), p.answer == 1, False) for p in every]


def test_the_whole_asks_what_the_first_questions_did_not(tmp_path):
    scored(prompts(10), Counting(), tmp_path)
    rest = Counting()
    scored(prompts(15)[::-1], rest, tmp_path)
    assert rest.asked == ["q14", "q13", "q12", "q11", "q10"]


def test_another_prompt_of_the_same_question_is_scored_anew(tmp_path):
    scored(prompts(2), Counting(), tmp_path)
    again = Counting()
    scored(prompts(2, "other"), again, tmp_path)
    assert again.asked == ["q0", "q1"]
    assert prompts_sha256(prompts(2)) != prompts_sha256(prompts(2, "other"))


def test_what_does_not_fit_is_not_asked(tmp_path):
    one, two = prompts(2)
    scorer = Counting()
    assert scored([one, two._replace(fits=False)], scorer, tmp_path)[1] is None
    assert scorer.asked == ["q0"]


def test_a_model_that_always_picks_one_letter_is_right_as_often_as_that_letter():
    asked = [p._replace(answer=0 if k < 3 else 1) for k, p in enumerate(prompts(10))]
    always_first = [Scored((-1.0, -2.0), p.answer == 0, False) for p in asked]
    assert chance_of_letters(asked, always_first) == pytest.approx(30)
    halves = [Scored((-1.0, -2.0) if k % 2 else (-2.0, -1.0), False, False) for k in range(10)]
    assert chance_of_letters(asked, halves) == pytest.approx(50)
    assert chance_of_letters(asked, [None] * 10) == 0


def test_the_interval_is_wilsons():
    low, high = wilson_interval(56.0, 50)  # 28 of 50, worked by hand from the formula
    z, n, p = 1.959963985, 50, 0.56
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (low, high) == pytest.approx(
        (100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n))
    )
    assert (round(low), round(high)) == (42, 69)
