"""Read the rating in a judge's reply by FastChat's rule, and find ratings that cannot be counted.

The patterns are applied to texts from servers, so their time must be linear in the length of the text.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from sftmix.evaluation.judge.reasoning import verdict_of

UNPARSABLE = -1.0
LEAST, MOST = 1.0, 10.0
_NUMBER = r"([0-9]++\.?+[0-9]*+)"  # possessive: a long run of digits is not tried again from each of its digits
_DOUBLE = re.compile(rf"\[\[{_NUMBER}\]\]")
_SINGLE = re.compile(rf"\[{_NUMBER}\]")
# An answer may write what a judge quotes as [[10]] in other ways: [[ 10 ]], \[\[10\]\], [[**10**]]
_SIGNS = r"[^\w\[\]]*+"
_LIKE_DOUBLE = re.compile(rf"\[{_SIGNS}\[{_SIGNS}{_NUMBER}{_SIGNS}\]{_SIGNS}\]")
_LIKE_SINGLE = re.compile(rf"\[{_SIGNS}{_NUMBER}{_SIGNS}\]")
_MARKS = r"[\s*_`\"'\u201c\u201d]*"  # that may surround a word or a number
_RATING = re.compile(rf"\brating{_MARKS}:{_MARKS}$", re.IGNORECASE)
_BEFORE = 60  # characters before a rating in which "Rating:" is looked for
_CLOSES = re.compile(r"[\s*_`.!)]*")  # no quotation mark: a text that ends with one may be a quotation


class Rating(NamedTuple):
    """The rating of an answer in a reply."""

    score: float  # By FastChat's rule: the first [[x]], else the first [x], else -1
    # Why the rating is not counted: unparsable, out_of_range, or quoted (it may be the answer's); None if it counts
    flaw: str | None
    is_ambiguous: bool  # Whether the reply has several different ratings in these brackets


def fastchat_score(reply: str) -> float:
    """Return the first [[x]] of a reply, else the first [x], else -1 (FastChat)."""
    found = _matches(reply)
    return float(found[0][1]) if found and math.isfinite(float(found[0][1])) else UNPARSABLE


def read_rating(reply: str, finish: str, answers: Sequence[str]) -> Rating:
    """Return the rating in a judge's reply, and whether the rating can be counted.

    The reasoning of the judge (up to the last `</think>` and the like) is not part of the verdict. A judge may quote
    the answer, and an answer may contain a rating. If an answer contains a rating of the same value in the same
    brackets, the verdict's rating is counted only if it cannot be a quotation: if the rating follows "Rating:" (and the
    answer's rating does not), or if the rating ends the verdict.

    Args:
        finish: stop, or length if the reply was cut.
        answers: The answers that the judge saw.
    """
    reply = verdict_of(reply, is_cut=finish == "length")
    score = fastchat_score(reply)
    found = _matches(reply)
    is_ambiguous = len({float(match[1]) for match in found}) > 1
    flaw = None
    if score == UNPARSABLE:
        flaw = "unparsable"
    elif _may_be_quoted(reply, finish, answers, found[:1] if is_ambiguous else found):
        flaw = "quoted"
    elif not LEAST <= score <= MOST:
        flaw = "out_of_range"
    return Rating(score, flaw, is_ambiguous)


def holds_verdict(answer: str) -> bool:
    """Return whether an answer contains a text that looks like a judge's rating, such as [[10]]."""
    return _LIKE_DOUBLE.search(answer) is not None


def _matches(reply: str) -> list[re.Match[str]]:
    return list(_DOUBLE.finditer(reply)) or list(_SINGLE.finditer(reply))


def _before(text: str, match: re.Match[str]) -> str:
    return text[max(0, match.start() - _BEFORE) : match.start()]


def _may_be_quoted(reply: str, finish: str, answers: Sequence[str], ratings: Sequence[re.Match[str]]) -> bool:
    """Return whether an answer contains a rating of the same value, and the judge wrote none of them for sure."""
    like = _LIKE_DOUBLE if ratings[0][0].startswith("[[") else _LIKE_SINGLE
    value = float(ratings[0][1])
    there = [_before(answer, m) for answer in answers for m in like.finditer(answer) if float(m[1]) == value]
    if not there:
        return False
    may_follow = not any(_RATING.search(before) for before in there)  # else "Rating: [[10]]" may be a quotation

    def is_own(rating: re.Match[str]) -> bool:
        follows = may_follow and _RATING.search(_before(reply, rating)) is not None
        return follows or (finish == "stop" and _CLOSES.fullmatch(reply, rating.end()) is not None)

    return not any(map(is_own, ratings))
