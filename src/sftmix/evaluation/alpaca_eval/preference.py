"""From a judge's verdict to a preference, and from preferences to a win rate, by AlpacaEval's rules.

A preference is from 1 (the baseline's answer is better) to 2 (the model's is); 1.5 is a draw.
"""

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

import numpy as np

FIRST, SECOND = "m", "M"  # what the judge calls the answer that it is shown first, and the other
DRAW = 1.5


class Rate(NamedTuple):
    """A mean over questions.

    Attributes:
        percent: of wins.
        standard_error: of that, in percent.
        n: questions.
    """

    percent: float
    standard_error: float
    n: int


def is_switched(instruction: str) -> bool:
    """Whether a judge is shown the model's answer before the baseline's: AlpacaEval's draw for an instruction."""
    return Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


def first_share(top_logprobs: Mapping[str, float]) -> float | None:
    """p(m) / (p(m) + p(M)): how far a judge prefers what it was shown first; None where it names neither.

    Args:
        top_logprobs: log-probabilities of the likeliest first tokens of its reply, in nats.
    """
    first, second = (top_logprobs.get(verdict, -math.inf) for verdict in (FIRST, SECOND))
    if math.isnan(first) or math.isnan(second) or max(first, second) == -math.inf:
        return None
    ratio = math.exp(-abs(first - second))
    return (1.0 if first >= second else ratio) / (1.0 + ratio)


def preference_of(share: float, switched: bool) -> float:
    """The preference between baseline and model, 1 to 2.

    Args:
        share: of the verdict, or of several, that falls to the answer that was shown first.
        switched: whether that was the model's.
    """
    return 1 + share if switched else 2 - share


def win_rate(preferences: Sequence[float]) -> Rate:
    """How often the model wins in percent, draws counted half: 100 mean(preference - 1)."""
    return rate_of(np.asarray(preferences, dtype=np.float64) - 1)


def rate_of(shares: np.ndarray) -> Rate:
    """Mean of shares of wins in percent, and its standard error by the sample's standard deviation (ddof=1)."""
    n = len(shares)
    error = float(np.std(shares, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Rate(100 * float(np.mean(shares)), 100 * error, n)
