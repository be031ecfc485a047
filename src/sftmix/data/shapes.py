"""The shapes that rows come in, and the dialogue that a row of each holds."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from sftmix.data import census as reasons
from sftmix.data.example import Message
from sftmix.errors import InputError

# The fields that a shape cannot do without; it may have others.
NEEDED = {
    "instruction": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
}
SHAPES = tuple(NEEDED)
READ = {"input", "system", "group", "id", "prompt_id"}  # beside those
MEANING = {
    "instruction": "instruction, input (where there is one) and output",
    "prompt": "prompt and completion",
    "messages": "messages of role and content",
    "conversations": "conversations of from and value (ShareGPT)",
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}


class Turns(NamedTuple):
    """The dialogue of a row.

    Attributes:
        messages: all turns, the last answer too.
        first_answer: answers before this turn are history and not learnt.
        lost_system: whether the row's system field gave way to a system turn of other text.
        unread: what else the row holds, as notes of the census.
    """

    messages: tuple[Message, ...]
    first_answer: int = 0
    lost_system: bool = False
    unread: tuple[str, ...] = ()


class BadRow(Exception):
    """A row that no dialogue can be read from; its text is a reason of the census."""


def renamed(fields: dict[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """The fields under the names that are known here.

    Args:
        fields: what the row holds.
        columns: the column of each known name that is called otherwise in the source.
        where: the place, for messages.

    Raises:
        InputError: the row has a column under the known name as well.
    """
    if not columns:
        return fields
    for name, column in columns.items():
        if column in fields and name in fields and name not in columns.values():
            raise InputError(
                f"{where}: data.columns.{name}={column}, but the row has a column {name} as well: two columns of the "
                f"same meaning"
            )
    names = {column: name for name, column in columns.items()}
    return {names.get(column, column): value for column, value in fields.items()}


def shape_of(fields: Mapping[str, Any]) -> list[str]:
    """The shapes whose fields a row has: one, none, or several where columns mean the same."""
    return [shape for shape, needed in NEEDED.items() if all(name in fields for name in needed)]


def choose_shape(fields: Any, wanted: str | None, where: str) -> str:
    """The shape of a source, by its first row.

    Args:
        fields: what the row holds.
        wanted: the shape that was asked for, or None.
        where: the place, for messages.

    Raises:
        InputError: the row is no record, has no shape that is known or that was asked for, or has several.
    """
    if not isinstance(fields, dict):
        raise InputError(f"{where}: a row is {type(fields).__name__}, expected an object with named fields")
    found = shape_of(fields)
    there = f"the fields are {', '.join(map(str, fields)) or 'none'}"
    if wanted is not None:
        if wanted not in found:
            raise InputError(f"{where}: data.shape={wanted} needs {MEANING[wanted]}; {there}")
        return wanted
    if len(found) == 1:
        return found[0]
    if found:
        named = " and ".join(MEANING[shape] for shape in found)
        raise InputError(f"{where}: two ways to read a row, {named}; say which by data.shape={found[0]}")
    expected = "; ".join(MEANING.values())
    raise InputError(
        f"{where}: no response field; {there}, expected one of: {expected}. data.columns={{output: NAME}} renames"
    )


def turns_of(fields: Any, shape: str) -> Turns:
    """The dialogue of a row.

    Raises:
        BadRow: the row is of another shape, or a field is no text.
    """
    if not isinstance(fields, dict) or any(name not in fields for name in NEEDED[shape]):
        raise BadRow(reasons.UNKNOWN_SHAPE)
    system = _text(fields.get("system"))
    before = (Message("system", system),) if system.strip() else ()
    if shape == "instruction":
        return Turns((*before, *_from_instruction(fields)))
    turns = _from_prompt(fields) if shape == "prompt" else Turns(_messages(fields[shape]))
    systems = [m.content for m in turns.messages if m.role == "system"]
    if before and systems:
        return turns._replace(lost_system=system not in systems)
    return Turns((*before, *turns.messages), turns.first_answer + len(before) if turns.first_answer else 0)


def _from_instruction(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    instruction, given, response = (_text(fields.get(name)) for name in ("instruction", "input", "output"))
    content = f"{instruction}\n\n{given}" if instruction and given else instruction or given
    return Message("user", content, instruction, given), Message("assistant", response)


def _from_prompt(fields: Mapping[str, Any]) -> Turns:
    prompt, completion = fields["prompt"], fields["completion"]
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return Turns((Message("user", _text(prompt)), Message("assistant", _text(completion))))
    history = _messages(prompt) if isinstance(prompt, list) else (Message("user", _text(prompt)),)
    answer = _messages(completion) if isinstance(completion, list) else (Message("assistant", _text(completion)),)
    return Turns((*history, *answer), len(history))


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise BadRow(reasons.NOT_TEXT)
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            raise BadRow(reasons.NOT_TEXT)
        role, key = turn.get(_key_of(turn, ROLE_KEYS)), _key_of(turn, CONTENT_KEYS)
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise BadRow(reasons.UNKNOWN_ROLE)
        if key not in turn:
            raise BadRow(reasons.NO_CONTENT)
        turns.append(Message(ROLES[role.lower()], _text(turn.get(key))))
    return tuple(turns)


def _key_of(turn: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The key of several of one meaning that a turn has: where schemas were merged, all but one are null."""
    here = [key for key in keys if key in turn]
    return next((key for key in here if turn[key] is not None), here[0] if here else keys[0])


def unread_of(fields: Mapping[str, Any], shape: str) -> tuple[str, ...]:
    """What a row holds beside the dialogue that was read from it, as notes of the census."""
    turns = [turn for name in NEEDED[shape] if isinstance(fields[name], list) for turn in fields[name]]
    names = {name for turn in turns for name in _unread_names(turn)}
    others = [s for s, needed in NEEDED.items() if s != shape and all(_is_there(fields.get(name)) for name in needed)]
    return (
        *(f"{reasons.UNREAD_FIELD}: {name}" for name in sorted(names)),
        *(f"{reasons.OTHER_SHAPE}: {MEANING[other]}" for other in others),
    )


def _unread_names(turn: Mapping[str, Any]) -> set[str]:
    text = turn.get(_key_of(turn, CONTENT_KEYS))
    held = {str(name): value for name, value in turn.items() if name not in ROLE_KEYS and _is_there(value)}
    return {name for name, value in held.items() if name not in CONTENT_KEYS or value != text}


def _is_there(value: Any) -> bool:
    return value is not None and value not in ("", [], {})


def _text(value: Any) -> str:
    """A field's text; a missing one is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(reasons.NOT_TEXT)
    if not is_whole_text(value):
        raise BadRow(reasons.HALF_CHARACTER)
    return value


def is_whole_text(text: str) -> TypeGuard[str]:
    """Whether a string is of whole characters: JSON can hold half of one (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
