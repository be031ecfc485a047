"""From the ratings of answers to the scores of a round: ST, MT and overall, with what could not be counted."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from sftmix.evaluation.generators.control_tokens import holds_special
from sftmix.evaluation.judge.reasoning import answer_of
from sftmix.evaluation.mt_bench.conversations import Conversation
from sftmix.evaluation.mt_bench.ratings import Rating, holds_verdict

COLUMNS = ("ST", "MT")  # by turn, the paper's names
FLAWS = ("unparsable", "out_of_range", "quoted")


class Rated(NamedTuple):
    """An answer and what the judge said of it: one a question, turn and round.

    Attributes:
        conversation: the answer's.
        turn: 1 or 2.
        round: of the judging, which is the conversation's where answers are given anew.
        rating: None where the judge's reply is missing.
    """

    conversation: Conversation
    turn: int
    round: int
    rating: Rating | None

    @property
    def score(self) -> float | None:
        """From 1 to 10; None where there is no rating that counts."""
        return self.rating.score if self.rating is not None and self.rating.flaw is None else None


def round_questions(rated: Sequence[Rated]) -> dict[str, dict[str, float]]:
    """By column, the score of each question: of its first and second answer, and the mean of those that there are."""
    questions: dict[str, dict[str, float]] = {}
    by_question: dict[str, list[float]] = {}
    for row in rated:
        if row.score is not None:
            number = str(row.conversation.question.id)
            questions.setdefault(COLUMNS[row.turn - 1], {})[number] = row.score
            by_question.setdefault(number, []).append(row.score)
    columns = {column: questions[column] for column in COLUMNS if column in questions}
    return columns | {"overall": {number: fmean(scores) for number, scores in by_question.items()}}


def round_scores(rated: Sequence[Rated]) -> dict[str, float]:
    """The means of a round over all ratings that count, by column; overall is over those of both turns (FastChat)."""
    counted = [(row.turn, row.score) for row in rated if row.score is not None]
    scores = {}
    for turn, column in enumerate(COLUMNS, start=1):
        of_turn = [score for found, score in counted if found == turn]
        if of_turn:
            scores[column] = fmean(of_turn)
    return scores | ({"overall": fmean(score for _, score in counted)} if counted else {})


def round_counts(rated: Sequence[Rated]) -> dict[str, int]:
    """How much is behind the scores of a round, and what is not in them; rare things are named where there are any."""
    conversations = {row.conversation.question.id: row.conversation for row in rated}.values()
    answers = [answer for conversation in conversations for answer in conversation.answers]
    ratings = [row.rating for row in rated if row.rating is not None]
    flaws = Counter(rating.flaw for rating in ratings)
    counts = {
        "questions": len(conversations),
        "ratings": flaws[None],
        "unparsable": flaws["unparsable"],
        "missing": len(rated) - len(ratings),
        "cut_by_length": sum(answer.finish == "length" for answer in answers),
    }
    rare = {
        "out_of_range": flaws["out_of_range"],  # the reply rates, but not from 1 to 10
        "quoted": flaws["quoted"],  # the rating may be the answer's own words
        "ambiguous": sum(rating.is_ambiguous for rating in ratings),  # several ratings in one reply, the first is taken
        "holds_verdict": sum(holds_verdict(answer_of(answer.text)) for answer in answers),
        "holds_special": sum(holds_special(answer.text) for answer in answers),
        "reasoning": sum(answer_of(answer.text) != answer.text for answer in answers),  # not shown to the judge
        "empty_answers": sum(not answer_of(answer.text).strip() for answer in answers),
        "dropped_turns": sum(answer.num_dropped_turns for answer in answers),
    }
    return counts | {name: number for name, number in rare.items() if number}
