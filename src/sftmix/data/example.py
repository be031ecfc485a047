"""An instruction-response pair, identified by the hash of its content."""

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
        role: system, user, or assistant.
        instruction: Instruction of an Alpaca row, without its input: Alpaca's template renders the two separately.
        input: Input of an Alpaca row. `content` holds it after the instruction and an empty line.
        weight: Weight of the turn in next-token prediction if the turn is learned; None if the source has none.
    """

    role: str
    content: str
    instruction: str | None = None
    input: str | None = None
    weight: float | None = None

    def as_dict(self) -> dict[str, str]:
        """Return the message as a chat template receives it."""
        fields = {"role": self.role, "content": self.content, "instruction": self.instruction, "input": self.input}
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Example:
    """An instruction-response pair.

    Attributes:
        id: Hash of the content. It does not depend on the order, the file, or the tokenizer.
        messages: All turns before the response.
        response: The text that is learned.
        source: File or hub id that the example came from.
        row: Row of the source, counted from 1.
        group: Label of the row, such as a quality or a task; empty if there is none.
        dialogue: Hash of all turns of the row. The examples of one dialogue are held out together.
        is_whole: Whether no example of the row was dropped.
        weight: Weight of the response in next-token prediction, above 0.
    """

    id: str
    messages: tuple[Message, ...]
    response: str
    source: str
    row: int
    group: str
    dialogue: str
    is_whole: bool = True
    weight: float = 1.0

    @property
    def instruction(self) -> str:
        """The last turn of the user, with its input if it has one."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def place(self) -> str:
        """Source and row, for the data report."""
        return place(self.source, self.row)


def place(source: str, row: int) -> str:
    """Return how the data report names a row."""
    return f"{source} row {row}"


def content_id(messages: Sequence[Message], response: str) -> str:
    """Return the id of an example: the hash of its messages and response, 16 hexadecimal digits.

    If an Alpaca row has an input, instruction and input are hashed separately, because templates may render them
    separately.
    """
    inputs = [[m.instruction, m.input] if m.input else [] for m in messages]
    turns = [[m.role, m.content, *more] for m, more in zip(messages, inputs, strict=True)]
    return _hash([*turns, ["assistant", response]])


def dialogue_id(messages: Sequence[Message]) -> str:
    """Return the hash of all turns of a row. The border between instruction and input does not count."""
    return _hash([[m.role, m.content] for m in messages])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:ID_DIGITS]


def is_held_out(dialogue: str, val_fraction: float, val_seed: int | None = None) -> bool:
    """Return whether a row is held out. Only its content counts, so adding rows never moves another row.

    Args:
        dialogue: Hash of the turns of the row, in hexadecimal digits.
        val_seed: Draws another held-out part. None: the hash itself decides.
    """
    if val_seed is not None:
        dialogue = hashlib.sha256(f"{val_seed} {dialogue}".encode()).hexdigest()
    return int(dialogue[:8], 16) / 16**8 < val_fraction
