"""What suites have found of a run: files in its folder `evaluation`, one a suite, judge and round."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts import read_json
from sftmix.errors import InputError

EVALUATION = "evaluation"


class Evaluation(NamedTuple):
    """What one round of a suite has found.

    Attributes:
        suite: mt_bench, alpaca_eval or medical.
        judge: whose scores they are, or None where answers are simply right or wrong.
        benchmark: which questions.
        round: counted from 1.
        scores: by the column of the paper's table.
    """

    suite: str
    judge: str | None
    benchmark: str
    round: int
    scores: dict[str, float]


def read_evaluations(run: Path) -> list[Evaluation]:
    """The evaluations of a run, in the order of their files' names.

    Raises:
        InputError: a file cannot be read, or is of something else.
    """
    return [_read(file) for file in sorted((run / EVALUATION).glob("*.json"))]


def _read(file: Path) -> Evaluation:
    try:
        content: Mapping[str, Any] = read_json(file)
        scores = {str(name): float(value) for name, value in content["scores"].items()}
        found = Evaluation(content["suite"], content["judge"], content["benchmark"], content["round"], scores)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: no evaluation can be read from it ({error})") from None
    texts = isinstance(found.suite, str) and isinstance(found.benchmark, str) and isinstance(found.judge, str | None)
    is_round = isinstance(found.round, int) and not isinstance(found.round, bool)
    if not texts or not is_round or not all(map(math.isfinite, scores.values())):
        raise InputError(
            f"{file}: no evaluation can be read from it (a suite, judge, benchmark, round or score is none)"
        )
    return found
