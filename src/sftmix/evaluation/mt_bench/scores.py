"""Compute the scores of a round (ST, MT, overall) and the counts of flaws, and write both in FastChat's form."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from sftmix.artifacts.files import write_bytes
from sftmix.evaluation.generators.answering import holds_special
from sftmix.evaluation.judge.journal import PRIVATE
from sftmix.evaluation.judge.reasoning import answer_of
from sftmix.evaluation.judge.requests import Reply, Request
from sftmix.evaluation.mt_bench.conversations import Conversation
from sftmix.evaluation.mt_bench.questions import template_name
from sftmix.evaluation.mt_bench.ratings import Rating, holds_verdict

COLUMNS = ("ST", "MT")  # the paper's names of turns 1 and 2
FLAWS = ("unparsable", "out_of_range", "quoted")


class Rated(NamedTuple):
    """The answer of a turn with its rating, which is None if the judge's reply is missing.

    `round` is the round of judging. It differs from the conversation's round if the same answers are judged again.
    """

    conversation: Conversation
    turn: int
    round: int
    rating: Rating | None

    @property
    def judged_texts(self) -> tuple[str, ...]:
        """The answers that the judge sees."""
        return self.conversation.judged_texts[: self.turn]

    @property
    def score(self) -> float | None:
        """The rating, 1 to 10; None if it is missing or cannot be counted."""
        return self.rating.score if self.rating is not None and self.rating.flaw is None else None


def round_questions(rated: Sequence[Rated]) -> dict[str, dict[str, float]]:
    """Return the score of each question by column: of the first answer, of the second answer, and their mean."""
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
    """Return the mean of a round by column over all counted ratings; overall is over both turns, as in FastChat."""
    counted = [(row.turn, row.score) for row in rated if row.score is not None]
    columns = {column: [s for of, s in counted if of == turn] for turn, column in enumerate(COLUMNS, start=1)}
    columns["overall"] = [score for _, score in counted]
    return {column: fmean(scores) for column, scores in columns.items() if scores}


def round_counts(rated: Sequence[Rated]) -> dict[str, int]:
    """Return the numbers of ratings and of flaws of a round. Rare flaws are left out if their number is 0."""
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
        "out_of_range": flaws["out_of_range"],  # a rating that is not between 1 and 10
        "quoted": flaws["quoted"],  # a rating that may be quoted from the answer
        "ambiguous": sum(rating.is_ambiguous for rating in ratings),  # several ratings: the first counts
        "holds_verdict": sum(holds_verdict(answer_of(answer.text)) for answer in answers),
        "holds_special": sum(holds_special(answer.text) for answer in answers),
        "reasoning": sum(answer_of(answer.text) != answer.text for answer in answers),  # not shown to the judge
        "empty_answers": sum(not answer_of(answer.text).strip() for answer in answers),
        "dropped_turns": sum(answer.num_dropped_turns for answer in answers),
    }
    return counts | {name: number for name, number in rare.items() if number}


def answer_rows(conversations: Sequence[Conversation], model: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each question, with the rounds as choices."""
    by_question: dict[int, list[Conversation]] = {}
    for conversation in conversations:
        by_question.setdefault(conversation.question.id, []).append(conversation)
    for number, rounds in by_question.items():
        choices = [{"index": index, "turns": list(one.texts)} for index, one in enumerate(rounds)]
        yield {"question_id": number, "model_id": model, "choices": choices, "tstamp": time.time()}


def judgment_rows(
    rated: Sequence[Rated], requests: Sequence[Request], replies: Sequence[Reply | None], model: str, judge: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each reply. A reply without a rating has the score -1, as in FastChat.

    The field `flaw` is the reason why a rating is not counted.
    """
    for row, request, reply in zip(rated, requests, replies, strict=True):
        if reply is None or row.rating is None:
            continue
        question, date = row.conversation.question, reply.record.get("date")
        yield {
            "question_id": question.id,
            "model": model,
            "judge": [judge, template_name(question, row.turn)],
            "user_prompt": request.messages[-1]["content"],
            "judgment": reply.text,
            "score": row.rating.score,
            "turn": row.turn,
            "tstamp": datetime.fromisoformat(date).timestamp() if isinstance(date, str) else None,
            "round": row.round,
            "served_model": reply.served_model,
            "key": reply.record.get("key"),
            "flaw": row.rating.flaw,
        }


def write_rows(file: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines. The file replaces an older one, and only its owner can read it."""
    write_bytes(file, "".join(json.dumps(row) + "\n" for row in rows).encode(), PRIVATE)
