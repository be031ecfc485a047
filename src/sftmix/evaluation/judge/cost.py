"""Estimate the cost of calls of a judge before they are made."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sftmix.terminal import counted

BYTES_PER_TOKEN = 4  # real calls had 4.8 characters per token, so the estimate is about 20% too high
UNKNOWN = (
    "price unknown: set judge.price='{prompt: DOLLARS, completion: DOLLARS, date: DAY}' (US dollars per million tokens)"
)


def about_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Return an upper estimate of the tokens of messages.

    Bytes are counted, because a Chinese character has three bytes and is about one token.
    """
    return math.ceil(sum(len(message["content"].encode(errors="replace")) for message in messages) / BYTES_PER_TOKEN)


class Price(NamedTuple):
    """Price of prompt and completion tokens in US dollars per million tokens, and the date of this price."""

    prompt: float
    completion: float
    date: str


class Estimate(NamedTuple):
    """Cost of the calls whose replies are not in the journal."""

    calls: int  # Number of these calls
    known: int  # Number of calls whose replies are in the journal, which cost nothing
    prompt_tokens: int  # Upper estimate
    completion_tokens: int  # Expected number
    price: Price | None  # None if the price is not known

    @property
    def dollars(self) -> float | None:
        """US dollars, or None if the price is not known."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price.prompt + self.completion_tokens * self.price.completion) / 1e6

    def in_words(self) -> str:
        """Return the estimate as one line."""
        tokens = f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens"
        cost = UNKNOWN if self.price is None else f"about ${self.dollars:,.2f} at the prices of {self.price.date}"
        there = f" ({self.known:,} more have replies already)" if self.known else ""
        return f"{counted(self.calls, 'call')}{there}, about {tokens}, {cost}"
