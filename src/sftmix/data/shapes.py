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
KINDS = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
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


def shown_shape(fields: Any, wanted: str | None, where: str) -> str | None:
    """The shape that a row shows; None where it shows none, or not the one that was asked for.

    Args:
        fields: what the row holds.
        wanted: the shape that was asked for, or None.
        where: the place, for messages.

    Raises:
        InputError: the row has several shapes.
    """
    found = shape_of(fields) if isinstance(fields, dict) else []
    if wanted is not None:
        return wanted if wanted in found else None
    if len(found) > 1:
        ways = " and ".join(MEANING[shape] for shape in found)
        raise InputError(f"{where}: two ways to read a row, {ways}; say which by data.shape={found[0]}")
    return found[0] if found else None


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    return KINDS.get(type(value), f"a {type(value).__name__}")


def turns_of(fields: Any, shape: str) -> Turns:
    """The dialogue of a row.

    Raises:
        BadRow: the row is of another shape, or a field is no text.
    """
    if not isinstance(fields, dict) or any(name not in fields for name in NEEDED[shape]):
        raise BadRow(reasons.UNKNOWN_SHAPE)
    system = _text(fields, "system")
    before = (Message("system", system),) if system.strip() else ()
    if shape == "instruction":
        return Turns((*before, *_from_instruction(fields)))
    turns = _from_prompt(fields) if shape == "prompt" else Turns(_messages(fields, shape))
    systems = [m.content for m in turns.messages if m.role == "system"]
    if before and systems:
        return turns._replace(lost_system=system not in systems)
    return Turns((*before, *turns.messages), turns.first_answer + len(before) if turns.first_answer else 0)


def _from_instruction(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    instruction, given, response = (_text(fields, name) for name in ("instruction", "input", "output"))
    content = f"{instruction}\n\n{given}" if instruction and given else instruction or given
    return Message("user", content, instruction, given), Message("assistant", response)


def _from_prompt(fields: Mapping[str, Any]) -> Turns:
    history = _turns_in(fields, "prompt", "user")
    return Turns((*history, *_turns_in(fields, "completion", "assistant")), len(history))


def _turns_in(fields: Mapping[str, Any], name: str, role: str) -> tuple[Message, ...]:
    """Turns, or the one turn that a text is."""
    return _messages(fields, name) if isinstance(fields[name], list) else (Message(role, _text(fields, name)),)


def _messages(fields: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    if not isinstance(fields[name], list):
        raise BadRow(f"{reasons.NOT_TURNS} ({name}: {kind_of(fields[name])})")
    turns = []
    for turn in fields[name]:
        if not isinstance(turn, dict):
            raise BadRow(f"{reasons.NOT_TURNS} (a turn of {name}: {kind_of(turn)})")
        role, key = turn.get(_key_of(turn, ROLE_KEYS)), _key_of(turn, CONTENT_KEYS)
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise BadRow(reasons.UNKNOWN_ROLE)
        if key not in turn:
            raise BadRow(reasons.NO_CONTENT)
        turns.append(Message(ROLES[role.lower()], _text(turn, key)))
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


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A field's text; a missing one is empty."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{reasons.NOT_TEXT} ({name}: {kind_of(value)})")
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
