"""Score a judgments file of FastChat by FastChat's rule (`show_result`), without a model or a judge."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from sftmix.errors import InputError
from sftmix.evaluation.mt_bench.ratings import UNPARSABLE
from sftmix.evaluation.published import read_records


class FastChatJudgment(NamedTuple):
    """A row of a judgments file. `judge` is None if the file does not name one; `score` is -1 without a rating."""

    question_id: object
    model: str
    judge: str | None
    turn: int
    score: float


class Rescored(NamedTuple):
    """Scores of a model by one judge."""

    model: str
    judge: str | None
    means: dict[str, float]  # Of turn 1, of turn 2, and over both (ST, MT, overall); a turn without a rating is absent
    counts: dict[str, int]  # Number of ratings of each mean
    dropped: int  # Number of rows with score -1, which the rule leaves out
    repeated: int  # Number of further rows of a question and turn, which the rule counts too

    def in_words(self) -> str:
        """Return the scores as one line."""
        means = ", ".join(f"{column} {mean:.4f} (n={self.counts[column]})" for column, mean in self.means.items())
        judge = "" if self.judge is None else f", judge {self.judge}"
        left = f"; {self.dropped} of score -1 left out, {self.repeated} repeated judgments counted"
        return f"{self.model}{judge}: {means or 'no rating'}{left}"


def read_judgments(file: Path) -> list[FastChatJudgment]:
    """Return the rows of a judgments file.

    Raises:
        InputError: If the file cannot be read, has no row, or a row is not a rating of one answer.
    """
    rows = []
    for where, _, row, *_ in read_records(file):
        judge, score, turn, model = (row.get(name) for name in ("judge", "score", "turn", "model"))
        is_score = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if not is_score or turn not in (1, 2) or not isinstance(model, str):
            raise InputError(f"{where}: model {model}, turn {turn}, score {score}, expected a text, 1 or 2, a number")
        name = judge[0] if isinstance(judge, list) and judge else judge
        judge_name = None if name is None else str(name)
        rows.append(FastChatJudgment(row.get("question_id"), model, judge_name, turn, float(row["score"])))
    return rows


def rescore(rows: Sequence[FastChatJudgment]) -> list[Rescored]:
    """Return the scores of each model by each judge, the best first.

    Scores are means over all rows except those with score -1. Repeated rows are not merged, as in FastChat.
    """
    models: dict[tuple[str, str | None], list[FastChatJudgment]] = {}
    for row in rows:
        models.setdefault((row.model, row.judge), []).append(row)
    found = []
    for (model, judge), judged in models.items():
        valid = [row for row in judged if row.score != UNPARSABLE]
        columns = {
            "ST": [row.score for row in valid if row.turn == 1],
            "MT": [row.score for row in valid if row.turn == 2],
            "overall": [row.score for row in valid],
        }
        repeated = sum(n - 1 for n in Counter((str(row.question_id), row.turn) for row in judged).values())
        means = {column: fmean(scores) for column, scores in columns.items() if scores}
        counts = {column: len(scores) for column, scores in columns.items()}
        found.append(Rescored(model, judge, means, counts, len(judged) - len(valid), repeated))
    return sorted(found, key=lambda scores: -scores.means.get("overall", -math.inf))
