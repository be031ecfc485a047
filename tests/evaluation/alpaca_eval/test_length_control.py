"""The length-controlled win rate: against the published score, and against planted effects."""

import numpy as np
import pytest

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.length_control import NUM_QUESTIONS, Gamed, length_controlled_shares, read_gamed
from sftmix.evaluation.alpaca_eval.outputs import read_annotations
from sftmix.evaluation.alpaca_eval.scores import rate_of, score

HEADER = "model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n"


def planted(bonus: float, advantage: float, wordy: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, Gamed]:
    """A judge whose logit is `advantage` less `bonus` a standard deviation that the baseline's answer is longer by."""
    draw = np.random.default_rng(0)
    lengths_1 = draw.integers(500, 1500, NUM_QUESTIONS)
    lengths_2 = lengths_1 + draw.integers(-400, 400, NUM_QUESTIONS) + round(wordy)
    difference = lengths_1 - lengths_2
    difficulty = draw.normal(size=NUM_QUESTIONS)
    logit = advantage - bonus * np.tanh(difference / np.std(difference, ddof=1))
    gamed_length = draw.normal(size=2 * NUM_QUESTIONS)
    gamed_share = 1 / (1 + np.exp(bonus * np.tanh(gamed_length)))
    gamed = Gamed(gamed_length, np.tile(difficulty, 2), gamed_share, difficulty)
    return lengths_1, lengths_2, 1 + 1 / (1 + np.exp(-logit)), gamed


def test_what_length_brings_is_taken_out():
    lengths_1, lengths_2, preferences, gamed = planted(bonus=2.0, advantage=0.0, wordy=400)
    assert 100 * np.mean(preferences - 1) > 75  # the model wins, because it is wordy
    found = rate_of(length_controlled_shares(lengths_1, lengths_2, preferences, gamed))
    assert found.percent == pytest.approx(50, abs=1)


def test_what_the_model_is_worth_is_left():
    lengths_1, lengths_2, preferences, gamed = planted(bonus=2.0, advantage=1.0, wordy=-400)
    found = rate_of(length_controlled_shares(lengths_1, lengths_2, preferences, gamed))
    assert found.percent == pytest.approx(100 / (1 + np.exp(-1.0)), abs=1)


@pytest.mark.parametrize("preference", [1.0, 1.5, 2.0])
def test_a_judge_of_one_mind_is_no_difficulty(preference):
    lengths_1, _, _, gamed = planted(bonus=1.0, advantage=0.0, wordy=0)
    shares = length_controlled_shares(lengths_1, lengths_1, np.full(NUM_QUESTIONS, preference), gamed)
    assert 100 * shares.mean() == pytest.approx(100 * (preference - 1), abs=3)


def test_questions_without_a_preference_are_left_out_of_the_fit_only():
    lengths_1, lengths_2, preferences, gamed = planted(bonus=2.0, advantage=1.0, wordy=0)
    whole = length_controlled_shares(lengths_1, lengths_2, preferences, gamed)
    preferences[::10] = np.nan
    part = length_controlled_shares(lengths_1, lengths_2, preferences, gamed)
    assert len(part) == NUM_QUESTIONS
    assert part.mean() == pytest.approx(whole.mean(), abs=0.01)


def test_the_published_scores_of_a_real_model_are_reproduced(shared):
    bench = shared / "data" / "bench" / "alpaca_eval"
    annotations = read_annotations(bench / "vicuna-7b-v1.5_annotations.json")
    pairs = [type(a.pair)(i, a.pair.instruction, a.pair.output_1, a.pair.output_2) for i, a in enumerate(annotations)]
    gamed = read_gamed(bench / "df_gamed_equivalent.csv")
    found = score(pairs, [a.preference for a in annotations], gamed, "annotations")
    assert found.win_rate.percent == pytest.approx(4.7975, abs=5e-5)
    assert found.lc_win_rate.percent == pytest.approx(7.6169, abs=0.02)
    assert found.win_rate.n == found.lc_win_rate.n == len(found.wins) == len(found.lc_wins) == 805
    for rate, questions in ((found.win_rate, found.wins), (found.lc_win_rate, found.lc_wins)):
        assert np.mean(list(questions.values())) == pytest.approx(rate.percent)
        assert rate.standard_error == pytest.approx(np.std(list(questions.values()), ddof=1) / np.sqrt(805))


def rows(count: int = NUM_QUESTIONS) -> list[str]:
    return [f"wordy,{i},0.5,0.1,0.2,False" for i in range(count)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file is empty"),
        ("index,preference\n0,1\n", "no column std_delta_len, instruction_difficulty, not_gamed_baseline"),
        (HEADER + "\n".join(rows(804)), "has 804 instructions, expected 805"),
        (HEADER + "\n".join([*rows(), "wordy,0,0.5,x,0.2,False"]), "line 807: has a value that is not a number"),
        (HEADER + "\n".join([*rows(), "wordy,0,0.5"]), "line 807: 3 fields for 6 columns"),
        (HEADER + "\n".join([*rows(), "wordy,0,1.5,0.1,0.2,False"]), "has a preference outside 0 to 1"),
        (HEADER + "\n".join([*rows(), "wordy,0,0.5,0.1,0.2,True"]), "line 807: not_gamed_baseline is True"),
    ],
)
def test_a_file_that_is_no_df_gamed_is_refused_in_one_line(content, says, tmp_path):
    file = tmp_path / "df_gamed.csv"
    file.write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        read_gamed(file)
    assert "\n" not in str(caught.value)


def test_gamed_rows_without_a_preference_are_left_out(tmp_path):
    file = tmp_path / "df_gamed.csv"
    file.write_text(HEADER + "\n".join([*rows(), "brief,3,,0.1,0.2,False", "brief,4,nan,0.1,0.2,False"]))
    assert len(read_gamed(file).preference) == NUM_QUESTIONS
