"""What calls of a judge will cost, before one is made."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sftmix.terminal import counted

BYTES_PER_TOKEN = 4  # real calls had 4.8 characters a token: the estimate is about a fifth above what will be paid
UNKNOWN = (
    "price unknown: set judge.price='{prompt: DOLLARS, completion: DOLLARS, date: DAY}' (US dollars per million tokens)"
)


def about_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Tokens of messages, rather too many than too few.

    Bytes are counted, not characters: a Chinese character has three, and is nearer to one token than to a quarter.
    """
    return math.ceil(sum(len(message["content"].encode(errors="replace")) for message in messages) / BYTES_PER_TOKEN)


class Price(NamedTuple):
    """What tokens cost.

    Attributes:
        prompt: US dollars per million tokens.
        completion: likewise.
        date: on which that was so.
    """

    prompt: float
    completion: float
    date: str


class Estimate(NamedTuple):
    """What calls would cost that are not in the journal.

    Attributes:
        calls: their number.
        known: calls that are there, and cost nothing.
        prompt_tokens: at most, about.
        completion_tokens: as expected.
        price: or None where it is not known.
    """

    calls: int
    known: int
    prompt_tokens: int
    completion_tokens: int
    price: Price | None

    @property
    def dollars(self) -> float | None:
        """US dollars, or None where the price is not known."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price.prompt + self.completion_tokens * self.price.completion) / 1e6

    def in_words(self) -> str:
        """For people, in one line."""
        tokens = f"{self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens"
        cost = UNKNOWN if self.price is None else f"about ${self.dollars:,.2f} at the prices of {self.price.date}"
        there = f" ({self.known:,} more are there already)" if self.known else ""
        return f"{counted(self.calls, 'call')}{there}, about {tokens}, {cost}"
