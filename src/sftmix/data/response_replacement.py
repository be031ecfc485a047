"""Replace the responses of some instructions by those of a better source: two qualities in one data set (Table 4)."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress

from sftmix.data import census as reasons
from sftmix.data.example import Message
from sftmix.data.row_errors import mismatch
from sftmix.data.rows import Row
from sftmix.data.schemas import detect_schema, read_dialogue
from sftmix.data.turns import BadRow, Dialogue, is_blank
from sftmix.errors import InputError

HIGH, LOW = "high", "low"


class ReplacementResponses:
    """Gives the chosen instructions the response of another source, joined on instruction and input.

    Only the text of an instruction decides whether it is chosen, so that no instruction is in both groups. A row of a
    chosen instruction that the other source does not answer is dropped.

    Attributes:
        num_joined: Number of rows whose response was replaced.
        num_unread: Number of rows of the other source without a response.
        num_later: Number of rows of the other source that answer a prompt again, differently. The first answer counts.

    Raises:
        InputError: If the other source has no response.
    """

    def __init__(self, rows: Iterable[Row], fraction: float) -> None:
        self.fraction = fraction
        self.num_joined = self.num_unread = self.num_later = 0
        self._responses: dict[bytes, str] = {}
        schema, found = None, False
        for row in rows:
            dialogue = Dialogue(())
            if not row.problem:
                schema = schema or detect_schema(row.fields, None, row.where)
                if schema is None:
                    raise InputError(f"{row.where}: {mismatch(row.fields, None)}")
                with suppress(BadRow):
                    dialogue = read_dialogue(row.fields, schema)
            if not _is_answered(dialogue) or is_blank(response := dialogue.messages[-1].content):
                self.num_unread += 1
                continue
            found = True
            if is_chosen(_instruction(dialogue), fraction):  # the responses of all others are never looked up
                self.num_later += self._responses.setdefault(_key(dialogue), response) != response
        if not found:
            raise InputError("data.replacement: no response in it")

    def __call__(self, dialogue: Dialogue, group: str) -> tuple[Dialogue, str] | str:
        """Return the dialogue with its response and group, or the reason why the row is dropped."""
        if not is_chosen(_instruction(dialogue), self.fraction):
            return dialogue, LOW
        response = self._responses.get(_key(dialogue)) if _is_answered(dialogue) else None
        if response is None:
            return reasons.NO_REPLACEMENT
        self.num_joined += 1
        return dialogue._replace(messages=(*dialogue.messages[:-1], Message("assistant", response))), HIGH


def is_chosen(instruction: str, fraction: float) -> bool:
    """Return whether the response of an instruction is replaced, by the hash of the instruction."""
    digest = hashlib.sha256(f"quality {instruction.strip()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def _is_answered(dialogue: Dialogue) -> bool:
    return bool(dialogue.messages) and dialogue.messages[-1].role == "assistant"


def _instruction(dialogue: Dialogue) -> str:
    asked = next((m for m in dialogue.messages if m.role == "user"), None)
    return "" if asked is None else asked.instruction or asked.content


def _key(dialogue: Dialogue) -> bytes:
    asked = [part.strip() for m in dialogue.messages[:-1] for part in (m.instruction or m.content, m.input or "")]
    return hashlib.sha256("\0".join(asked).encode()).digest()
