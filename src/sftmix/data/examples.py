"""From rows to examples: shapes of rows, dialogue expansion, duplicates, the held-out part."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, TypeGuard

from sftmix.data import census as reasons
from sftmix.data.census import Census
from sftmix.data.example import Example, Message, content_id, is_held_out
from sftmix.data.sources import Row
from sftmix.errors import InputError

ROLES = ("system", "user", "assistant")


def examples_from_rows(rows: Iterable[Row], source: str, limit: int | None, census: Census) -> list[Example]:
    """The examples of a source in file order, without empty responses and duplicates.

    Args:
        rows: the source.
        source: its name, kept with each example.
        limit: take the first rows only, in file order.
        census: takes down what is dropped; `kept` is left to whoever gives the examples their last shape.

    Raises:
        InputError: a row has no response field, or is no record at all.
    """
    seen: set[str] = set()
    examples: list[Example] = []
    for row in islice(rows, limit):
        census.rows += 1
        found = _expand(row, source, census)
        for example in found:
            place = f"row {example.row}"
            if not example.response.strip():
                census.dropped[reasons.EMPTY_RESPONSE].append(place)
            elif example.id in seen:
                census.dropped[reasons.DUPLICATE].append(place)
            else:
                seen.add(example.id)
                examples.append(example)
    return examples


def hold_out(examples: list[Example], val_fraction: float) -> tuple[list[Example], list[Example]]:
    """The examples to train on and those held out, whole dialogues apart, by the hash of their content."""
    train = [e for e in examples if not is_held_out(e.dialogue, val_fraction)]
    val = [e for e in examples if is_held_out(e.dialogue, val_fraction)]
    return train, val


def _expand(row: Row, source: str, census: Census) -> list[Example]:
    if not isinstance(row.fields, dict):
        raise InputError(f"{row.where}: a row is {type(row.fields).__name__}, expected an object with named fields")
    if "messages" in row.fields:
        return _from_messages(row, source, census)
    if "instruction" in row.fields and "output" in row.fields:
        return _from_instruction(row, source, census)
    raise InputError(
        f"{row.where}: no response field; the fields are {', '.join(row.fields) or 'none'}, "
        f"expected instruction and output (and input), or messages of role and content"
    )


def _from_instruction(row: Row, source: str, census: Census) -> list[Example]:
    """An Alpaca-shaped row: instruction, input (may be absent), output."""
    instruction, given, response = (row.fields.get(key) or "" for key in ("instruction", "input", "output"))
    if not all(_is_text(text) for text in (instruction, given, response)):
        census.dropped[reasons.BAD_ROW].append(f"row {row.number}")
        return []
    content = f"{instruction}\n\n{given}" if given else instruction
    messages = (Message("user", content, instruction, given),)
    dialogue = content_id(messages, response)
    group = str(row.fields.get("group") or "")
    return [Example(dialogue, messages, response, source, row.number, group, dialogue)]


def _from_messages(row: Row, source: str, census: Census) -> list[Example]:
    """A dialogue becomes one example per assistant turn, with the history before it in the prompt."""
    turns = _messages(row.fields["messages"])
    if turns is None:
        census.dropped[reasons.BAD_ROW].append(f"row {row.number}")
        return []
    dialogue = content_id(turns)
    group = str(row.fields.get("group") or "")
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant" and i > 0]
    if not answers:
        census.dropped[reasons.NO_TURN].append(f"row {row.number}")
    return [
        Example(
            content_id(turns[:i], turns[i].content),
            tuple(turns[:i]),
            turns[i].content,
            source,
            row.number,
            group,
            dialogue,
        )
        for i in answers
    ]


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a string of whole characters: JSON can hold half of one (a lone surrogate)."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _messages(value: Any) -> list[Message] | None:
    """The turns of a dialogue, or None where they are not a list of role and content."""
    if not isinstance(value, list):
        return None
    turns = []
    for turn in value:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not _is_text(content):
            return None
        turns.append(Message(role, content))
    return turns
