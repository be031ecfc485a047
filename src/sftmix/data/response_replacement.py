"""Two qualities in one data set (Table 4): a part of the responses replaced by better ones of the same instructions."""

import hashlib
from collections.abc import Iterable

from sftmix.data import census as reasons
from sftmix.data.error_hints import unfit
from sftmix.data.example import Message
from sftmix.data.schemas import BadRow, Turns, is_blank, shown_shape, turns_of
from sftmix.data.sources import Row
from sftmix.errors import InputError

HIGH, LOW = "high", "low"


class BetterResponses:
    """Gives the chosen part of the instructions the response of another source; joined on instruction and input.

    Which part is chosen depends on the instruction's text alone, so that no instruction stands in both groups. A row
    of a chosen instruction that the other source does not answer is dropped, and named.

    Args:
        rows: the better source.
        fraction: of the instructions.

    Attributes:
        num_joined: rows that took a better response.
        num_unread: rows of the better source that hold no response.
        num_later: rows of it that answer otherwise what an earlier one answers; the first counts.

    Raises:
        InputError: the better source has no responses.
    """

    def __init__(self, rows: Iterable[Row], fraction: float) -> None:
        """Read the better responses."""
        self.fraction = fraction
        self.num_joined = 0
        self._responses: dict[bytes, str] = {}
        self.num_unread = self.num_later = 0
        shape, found = None, False
        for row in rows:
            if row.problem:
                self.num_unread += 1
                continue
            shape = shape or shown_shape(row.fields, None, row.where)
            if shape is None:
                raise InputError(f"{row.where}: {unfit(row.fields, None)}")
            try:
                turns = turns_of(row.fields, shape)
            except BadRow:
                turns = Turns(())
            last = turns.messages[-1] if turns.messages else Message("user", "")
            if last.role != "assistant" or is_blank(last.content):
                self.num_unread += 1
                continue
            found = True
            if is_chosen(_instruction(turns), fraction):  # no other is ever asked for
                first = self._responses.setdefault(_key(turns), last.content)
                self.num_later += first != last.content
        if not found:
            raise InputError("data.better: no response in it")

    def __call__(self, turns: Turns, group: str) -> tuple[Turns, str] | str:
        """The row with its response and group, or why it is dropped."""
        if not is_chosen(_instruction(turns), self.fraction):
            return turns, LOW
        is_answered = bool(turns.messages) and turns.messages[-1].role == "assistant"
        better = self._responses.get(_key(turns)) if is_answered else None
        if better is None:
            return reasons.NO_BETTER_RESPONSE
        self.num_joined += 1
        return turns._replace(messages=(*turns.messages[:-1], Message("assistant", better))), HIGH


def is_chosen(instruction: str, fraction: float) -> bool:
    """Whether an instruction belongs to the part that takes better responses: by the hash of its text."""
    digest = hashlib.sha256(f"quality {instruction.strip()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def _instruction(turns: Turns) -> str:
    asked = next((m for m in turns.messages if m.role == "user"), None)
    return "" if asked is None else asked.instruction or asked.content


def _key(turns: Turns) -> bytes:
    asked = [part.strip() for m in turns.messages[:-1] for part in (m.instruction or m.content, m.input or "")]
    return hashlib.sha256("\0".join(asked).encode()).digest()
