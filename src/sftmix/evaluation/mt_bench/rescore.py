"""A judgments file of FastChat's form, re-scored by FastChat's own rule; nothing is asked."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.mt_bench.files import read_rows
from sftmix.evaluation.mt_bench.ratings import UNPARSABLE


class FastChatJudgment(NamedTuple):
    """One row of such a file.

    Attributes:
        question_id: of the question.
        model: whose answer.
        judge: who rated, or None where the file does not say.
        turn: 1 or 2.
        score: 1 to 10; -1: there is none.
    """

    question_id: object
    model: str
    judge: str | None
    turn: int
    score: float


class Rescored(NamedTuple):
    """A model's scores by one judge.

    Attributes:
        model: whose.
        judge: whose ratings.
        means: of turn 1, of turn 2, and over both (ST, MT, overall); a turn without a rating is absent.
        counts: of the ratings behind each.
        dropped: rows of score -1, which the rule leaves out.
        repeated: rows beyond the first of a question and turn, which the rule counts again.
    """

    model: str
    judge: str | None
    means: dict[str, float]
    counts: dict[str, int]
    dropped: int
    repeated: int


def read_judgments(file: Path) -> list[FastChatJudgment]:
    """The rows of a judgments file.

    Raises:
        InputError: it cannot be read, has no row, or a row is no rating of one answer.
    """
    rows = []
    for where, row in read_rows(file):
        judge = row.get("judge")
        score, turn, model = row.get("score"), row.get("turn"), row.get("model")
        is_score = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if not is_score or turn not in (1, 2) or not isinstance(model, str):
            raise InputError(f"{where}: model {model}, turn {turn}, score {score}, expected a text, 1 or 2, a number")
        name = judge[0] if isinstance(judge, list) and judge else judge
        rows.append(
            FastChatJudgment(
                row.get("question_id"), model, None if name is None else str(name), turn, float(row["score"])
            )
        )
    if not rows:
        raise InputError(f"{file}: no judgment in it, expected one a line")
    return rows


def rescore(rows: Sequence[FastChatJudgment]) -> list[Rescored]:
    """The scores of each model by each judge: the mean over all rows but those of -1, repeated ones not put together.

    That is what FastChat's `show_result` does. Best first.
    """
    models: dict[tuple[str, str | None], list[FastChatJudgment]] = {}
    for row in rows:
        models.setdefault((row.model, row.judge), []).append(row)
    found = [_rescored(model, judge, judged) for (model, judge), judged in models.items()]
    return sorted(found, key=lambda scores: -scores.means.get("overall", -math.inf))


def _rescored(model: str, judge: str | None, rows: Sequence[FastChatJudgment]) -> Rescored:
    valid = [row for row in rows if row.score != UNPARSABLE]
    columns = {
        "ST": [row.score for row in valid if row.turn == 1],
        "MT": [row.score for row in valid if row.turn == 2],
        "overall": [row.score for row in valid],
    }
    repeated = sum(n - 1 for n in Counter((str(row.question_id), row.turn) for row in rows).values())
    means = {column: fmean(scores) for column, scores in columns.items() if scores}
    counts = {column: len(scores) for column, scores in columns.items()}
    return Rescored(model, judge, means, counts, len(rows) - len(valid), repeated)
