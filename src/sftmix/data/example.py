"""An instruction-response pair, known by the hash of its content."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Message:
    """One turn before the response.

    Attributes:
        role: system, user or assistant.
        content: the turn's text, as any chat template shows it.
        instruction: of an Alpaca-shaped row, the instruction without its input: Alpaca's own template sets them apart.
        input: of an Alpaca-shaped row, the input; its content holds it after the instruction and an empty line.
    """

    role: str
    content: str
    instruction: str | None = None
    input: str | None = None

    def as_dict(self) -> dict[str, str]:
        """The message as a chat template receives it."""
        fields = {"role": self.role, "content": self.content, "instruction": self.instruction, "input": self.input}
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction-response pair.

    Attributes:
        id: hash of the content: the same in any order, in any file and under any tokenizer.
        messages: everything before the response.
        response: the text that is learnt.
        source: the file or hub id it came from.
        row: its row in the source, counted from 1.
        group: a label for reading, such as a planted family; empty where there is none.
        dialogue: hash of the whole row: turns of one dialogue are held out together.
        is_whole: whether every example of its row is there.
    """

    id: str
    messages: tuple[Message, ...]
    response: str
    source: str
    row: int
    group: str
    dialogue: str
    is_whole: bool = True

    @property
    def instruction(self) -> str:
        """The last thing that the user said, with its input if it has one."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def num_characters(self) -> int:
        """Of all its texts."""
        return len(self.response) + sum(len(m.content) for m in self.messages)

    @property
    def place(self) -> str:
        """Where it stands, for the census."""
        return place(self.source, self.row)


def place(source: str, row: int) -> str:
    """How the census names a row."""
    return f"{source} row {row}"


def content_id(messages: Sequence[Message], response: str) -> str:
    """Return the id of an example: the hash of its messages and response, 16 hexadecimal digits.

    Instruction and input of an Alpaca-shaped row count apart where there is an input, because templates may show them
    apart.
    """
    turns: list[list[str | None]] = [
        [m.role, m.content, m.instruction, m.input] if m.input else [m.role, m.content] for m in messages
    ]
    return _hash([*turns, ["assistant", response]])


def dialogue_id(messages: Sequence[Message]) -> str:
    """Return the hash of all turns of a row, wherever the border between instruction and input is."""
    return _hash([[m.role, m.content] for m in messages])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:ID_DIGITS]


def is_held_out(dialogue: str, val_fraction: float) -> bool:
    """Whether a row belongs to the held-out part: by its content alone, so adding rows never moves one."""
    return int(dialogue[:8], 16) / 16**8 < val_fraction
