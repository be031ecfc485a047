"""Compute preferences, win rate and length-controlled win rate from a judge's verdicts, by AlpacaEval's rules.

A preference is between 1 (the baseline's answer is better) and 2 (the model's is better); 1.5 is a draw.
"""

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

import numpy as np

from sftmix.errors import InputError
from sftmix.evaluation.alpaca_eval.length_control import NUM_QUESTIONS, Gamed, length_controlled_shares
from sftmix.evaluation.alpaca_eval.outputs import Pair
from sftmix.evaluation.judge.reasoning import answer_of

FIRST, SECOND = "m", "M"  # the judge's names for the answer that is shown first, and for the second
BASELINES = ("gpt4_1106_preview", "gpt4_turbo")  # names of the model in the published file


class Rate(NamedTuple):
    """A mean over questions in percent, its standard error in percent, and the number of questions."""

    percent: float
    standard_error: float
    n: int

    def in_words(self, name: str, num_judged: int, num_questions: int) -> str:
        """Return the rate as one line, with the number of judged questions if some are not judged."""
        part = "" if num_judged == num_questions else f", {num_judged:,} of {num_questions:,} judged"
        is_known = math.isfinite(self.standard_error)  # unknown for a single question
        error = f"standard error {self.standard_error:.4f}, " if is_known else ""
        return f"{name} {self.percent:.4f} ({error}n {self.n:,}{part})"


class Scores(NamedTuple):
    """The scores of preferences."""

    win_rate: Rate  # Over the questions that have a preference
    lc_win_rate: Rate | None  # Over all 805, or None if there are no gamed rows
    wins: dict[str, float]  # Percent that each question adds to the win rate, by its index
    lc_wins: dict[str, float]  # The same for the length-controlled win rate


def is_switched(instruction: str) -> bool:
    """Return whether the judge sees the model's answer before the baseline's, drawn as AlpacaEval draws it."""
    return Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def first_share(top_logprobs: Mapping[str, float]) -> float | None:
    """Return p(m) / (p(m) + p(M)), the judge's preference for the answer shown first; None if neither is given.

    Args:
        top_logprobs: Log-probabilities of the likeliest first tokens of the reply, in nats.
    """
    first, second = (top_logprobs.get(verdict, -math.inf) for verdict in (FIRST, SECOND))
    if math.isnan(first) or math.isnan(second) or max(first, second) == -math.inf:
        return None
    ratio = math.exp(-abs(first - second))
    return (1.0 if first >= second else ratio) / (1.0 + ratio)


def preference_of(share: float, switched: bool) -> float:
    """Return the preference, 1 to 2, for a share of the answer that was shown first, 0 to 1.

    Args:
        switched: Whether the model's answer was shown first.
    """
    return 1 + share if switched else 2 - share


def rate_of(shares: np.ndarray) -> Rate:
    """Return the mean of shares of wins in percent, and the standard error (ddof=1)."""
    n = len(shares)
    error = float(np.std(shares, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Rate(100 * float(np.mean(shares)), 100 * error, n)


def why_no_length_control(num_questions: int, baseline: str) -> str | None:
    """Return why a number of questions and a baseline have no length-controlled win rate, or None if they have one."""
    if num_questions != NUM_QUESTIONS:
        return f"its constants need all {NUM_QUESTIONS} questions, here are {num_questions:,}"
    if baseline not in BASELINES:
        return f"its constants need the baseline {BASELINES[0]}, here the baseline is {baseline!r}"
    return None


def score(pairs: Sequence[Pair], preferences: Sequence[float | None], gamed: Gamed | None, where: str) -> Scores:
    """Return the scores of judged pairs.

    The win rate is 100 mean(preference - 1), so that a draw counts half.

    Args:
        pairs: With `gamed`, all questions in their order.
        preferences: None for a pair without a verdict.
        gamed: Gamed rows, or None for no length-controlled win rate.

    Raises:
        InputError: If no pair has a preference.
    """
    there = [p for p in preferences if p is not None]
    if not there:
        raise InputError(f"{where}: has no preference, expected one for each question")
    rate = rate_of(np.asarray(there, dtype=np.float64) - 1)
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
