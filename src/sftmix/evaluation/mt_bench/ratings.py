"""The rating in a judge's reply, by FastChat's rule, and when it cannot be counted."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

UNPARSABLE = -1.0
LEAST, MOST = 1.0, 10.0
_DOUBLE = re.compile(r"\[\[([0-9]+\.?[0-9]*)\]\]")
_SINGLE = re.compile(r"\[([0-9]+\.?[0-9]*)\]")


class Rating(NamedTuple):
    """What a reply says of an answer.

    Attributes:
        score: by FastChat's rule: the first [[x]], else the first [x], else -1.
        flaw: why it is not counted: unparsable, out_of_range or quoted; None: it counts.
        is_ambiguous: whether the reply has several different ratings in such brackets.
    """

    score: float
    flaw: str | None
    is_ambiguous: bool


def fastchat_score(reply: str) -> float:
    """The first [[x]] of a reply, else the first [x], else -1."""
    found = _found(reply)
    return float(found[0]) if found and math.isfinite(float(found[0])) else UNPARSABLE


def read_rating(reply: str, finish: str, answers: Sequence[str]) -> Rating:
    """What a judge's reply says, and whether it can be counted.

    The score is the reply's alone. A judge may quote the answer though, and an answer may hold a rating of its own
    making. So where the first rating stands in the answer too, it counts only if the reply is whole and has no other.

    Args:
        reply: of the judge.
        finish: stop, or length where the reply was cut.
        answers: those that the judge saw.
    """
    score = fastchat_score(reply)
    values = {float(text) for text in _found(reply)}
    is_ambiguous = len(values) > 1
    flaw = None
    if score == UNPARSABLE:
        flaw = "unparsable"
    elif (is_ambiguous or finish == "length") and any(score in _all(answer) for answer in answers):
        flaw = "quoted"
    elif not LEAST <= score <= MOST:
        flaw = "out_of_range"
    return Rating(score, flaw, is_ambiguous)


def holds_verdict(answer: str) -> bool:
    """Whether an answer has something in it that reads as a judge's rating, as [[10]]."""
    return _DOUBLE.search(answer) is not None


def _found(text: str) -> list[str]:
    return _DOUBLE.findall(text) or _SINGLE.findall(text)


def _all(text: str) -> set[float]:
    return {float(number) for number in _SINGLE.findall(text)}  # [[x]] has [x] in it
