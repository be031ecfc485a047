"""From ratings to ST, MT, overall, and the counts of replies without a rating."""

import pytest

from sftmix.evaluation.generators.answering import Answer
from sftmix.evaluation.mt_bench.conversations import Conversation
from sftmix.evaluation.mt_bench.questions import Question
from sftmix.evaluation.mt_bench.ratings import Rating
from sftmix.evaluation.mt_bench.scores import Rated, round_counts, round_questions, round_scores


def rated(number, turn, score, flaw=None, texts=("good", "better"), finish="stop", is_ambiguous=False):
    first, second = (Answer(text, finish, 5, "0") for text in texts)
    one = Conversation(Question(number, "writing", ("a", "b"), None), 1, (first, second))
    return Rated(one, turn, 1, None if score is None else Rating(score, flaw, is_ambiguous))


def test_a_whole_round_has_the_mean_of_its_turns():
    rows = [rated(81, 1, 8.0), rated(81, 2, 5.0), rated(82, 1, 7.0), rated(82, 2, 2.0)]
    assert round_scores(rows) == {"ST": 7.5, "MT": 3.5, "overall": 5.5}
    assert round_questions(rows) == {
        "ST": {"81": 8, "82": 7}, "MT": {"81": 5, "82": 2}, "overall": {"81": 6.5, "82": 4.5}
    }  # fmt: skip
    counts = {"questions": 2, "ratings": 4, "unparsable": 0, "missing": 0, "cut_by_length": 0}
    assert round_counts(rows) == counts


def test_what_cannot_be_counted_is_in_no_mean_and_in_the_counts():
    rows = [
        rated(81, 1, 8.0), rated(81, 2, -1.0, "unparsable"), rated(82, 1, 2023.0, "out_of_range"),
        rated(82, 2, 2.0), rated(83, 1, None), rated(83, 2, 10.0, "quoted", is_ambiguous=True),
    ]  # fmt: skip
    assert round_scores(rows) == {"ST": 8, "MT": 2, "overall": 5}
    assert round_questions(rows) == {"ST": {"81": 8}, "MT": {"82": 2}, "overall": {"81": 8, "82": 2}}
    assert round_counts(rows) == {
        "questions": 3, "ratings": 2, "unparsable": 1, "missing": 1, "cut_by_length": 0, "out_of_range": 1,
        "quoted": 1, "ambiguous": 1,
    }  # fmt: skip


def test_overall_is_over_all_ratings_not_over_the_turns():
    rows = [rated(81, 1, 9.0), rated(81, 2, -1.0, "unparsable"), rated(82, 1, 6.0), rated(82, 2, 3.0)]
    assert round_scores(rows)["overall"] == pytest.approx((9 + 6 + 3) / 3)  # not (7.5 + 3) / 2


def test_a_turn_without_a_rating_has_no_score():
    rows = [rated(81, 1, 9.0), rated(81, 2, -1.0, "unparsable")]
    assert round_scores(rows) == {"ST": 9, "overall": 9}
    assert round_scores(rows[1:]) == {}


def test_what_is_odd_in_answers_is_counted_once_an_answer():
    rows = [rated(81, turn, 5.0, texts=("I say [[10]]", " \n"), finish="length") for turn in (1, 2)]
    counts = round_counts(rows)
    assert counts["questions"] == 1
    assert (counts["holds_verdict"], counts["empty_answers"], counts["cut_by_length"]) == (1, 1, 2)
    assert "holds_special" not in counts
    rows = [rated(81, turn, 5.0, texts=("fine<|eot_id|>", "[INST] Go on.")) for turn in (1, 2)]
    assert round_counts(rows)["holds_special"] == 2
