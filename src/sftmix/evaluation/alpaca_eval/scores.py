"""Win rate and length-controlled win rate of a model's judged answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.length_control import NUM_QUESTIONS, Gamed, length_controlled_shares
from sftmix.evaluation.alpaca_eval.outputs import Pair
from sftmix.evaluation.alpaca_eval.preference import Rate, rate_of, win_rate
from sftmix.evaluation.judge.reasoning import answer_of

BASELINES = ("gpt4_1106_preview", "gpt4_turbo")  # what the published file calls its model


class Scores(NamedTuple):
    """What preferences add up to.

    Attributes:
        win_rate: over the questions that have a preference.
        lc_win_rate: over all 805, or None where it was not asked for.
        wins: percent each question brought to the win rate, by its index.
        lc_wins: likewise to the length-controlled one.
    """

    win_rate: Rate
    lc_win_rate: Rate | None
    wins: dict[str, float]
    lc_wins: dict[str, float]


def why_no_length_control(num_questions: int, baseline: str) -> str | None:
    """Why there can be no length-controlled win rate, or None where there can.

    Args:
        num_questions: that were judged.
        baseline: the model whose answers the others are compared with.
    """
    if num_questions != NUM_QUESTIONS:
        return f"its constants are of all {NUM_QUESTIONS} questions, here are {num_questions:,}"
    if baseline not in BASELINES:
        return f"its constants are of the baseline {BASELINES[0]}, here it is {baseline!r}"
    return None


def score(pairs: Sequence[Pair], preferences: Sequence[float | None], gamed: Gamed | None, where: str) -> Scores:
    """The scores of judged pairs.

    Args:
        pairs: in the order of their indices, where length is controlled.
        preferences: 1 (the baseline's) to 2 (the model's), or None where there is no verdict.
        gamed: for the length-controlled win rate; None: without it.
        where: the preferences are from, for messages.

    Raises:
        InputError: there is no preference at all.
    """
    there = [p for p in preferences if p is not None]
    if not there:
        raise InputError(f"{where}: has no preference, expected one a question")
    rate = win_rate(there)
    wins = {str(pair.index): 100 * (p - 1) for pair, p in zip(pairs, preferences, strict=True) if p is not None}
    if gamed is None:
        return Scores(rate, None, wins, {})
    if [pair.index for pair in pairs] != list(range(NUM_QUESTIONS)):
        raise ValueError(
            f"{where}: expected all {NUM_QUESTIONS} questions in their order for the length-controlled rate"
        )
    shares = length_controlled_shares(
        np.asarray([len(answer_of(pair.output_1)) for pair in pairs]),
        np.asarray([len(answer_of(pair.output_2)) for pair in pairs]),
        np.asarray([np.nan if p is None else p for p in preferences], dtype=np.float64),
        gamed,
    )
    return Scores(rate, rate_of(shares), wins, {str(i): 100 * float(share) for i, share in enumerate(shares)})
