"""The shapes that rows come in, and the dialogue that a row of each holds."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from sftmix.data import census as reasons
from sftmix.data.example import Message
from sftmix.errors import InputError
from sftmix.terminal import one_line

# The fields that a shape cannot do without; it may have others.
NEEDED = {
    "instruction": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
}
SHAPES = tuple(NEEDED)
TURN_FIELDS = ("messages", "conversations")  # lists of turns, also as a JSON string
READ = {"input", "system", "group", "id", "prompt_id"}  # beside those
MEANING = {
    "instruction": "instruction, input (where there is one) and output",
    "prompt": "prompt and completion",
    "messages": "messages of role and content",
    "conversations": "conversations of from and value (ShareGPT)",
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai"), "assistant"),
}
# Fields of a turn that say whether it is learned: weight (OpenAI, Mistral), train, training and train_detail (axolotl),
# loss (XTuner, ms-swift), masked (torchtune: true is not learned). The value is 0, 1, true or false, also as a string.
LEARNED_IF_TRUE = (
    "weight", "loss_weight", "loss_scale", "loss_mask", "loss", "train", "training", "trainable", "trained",
    "train_on_turn", "learn", "do_train", "compute_loss", "calculate_loss",
)  # fmt: skip
LEARNED_IF_FALSE = ("masked", "no_loss", "ignore_loss")
LEARNED_SPANS = ("train_detail", "training_detail")
MARKS = {*LEARNED_IF_TRUE, *LEARNED_IF_FALSE, *LEARNED_SPANS}
YES, NO = ("true", "yes"), ("false", "no")
TEXT_PARTS = (None, "text", "input_text", "output_text")  # types of a part of a content
# Whatever shows nothing: white space, control and format characters, and the other code points that Unicode calls
# default ignorable (fillers, variation selectors, tags); the empty Braille pattern too.
INVISIBLE = (
    r"\s\x00-\x20\x7f-\xa0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5"
    r"\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
VISIBLE = re.compile(f"[^{INVISIBLE}]")
SHOWN = 30  # characters of a value in a detail
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
        unlearned: turns that are marked not to be learned, counted from 0.
        lost_system: whether the row's system field gave way to a system turn of other text.
        unread: what else the row holds, as notes of the census.
    """

    messages: tuple[Message, ...]
    first_answer: int = 0
    unlearned: frozenset[int] = frozenset()
    lost_system: bool = False
    unread: tuple[str, ...] = ()


class BadRow(Exception):
    """A row that no dialogue can be read from; its text is a reason of the data report.

    Attributes:
        detail: What was found in this row, added to its place in the report.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        """Set the reason and the detail."""
        super().__init__(reason)
        self.detail = detail


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
    before = () if is_blank(system) else (Message("system", system),)
    if shape == "instruction":
        return Turns((*before, *_from_instruction(fields)))
    turns = _from_prompt(fields) if shape == "prompt" else _messages(fields, shape)
    systems = [m.content for m in turns.messages if m.role == "system"]
    if not before or systems:
        return turns._replace(lost_system=bool(before) and system not in systems)
    first_answer = turns.first_answer + 1 if turns.first_answer else 0
    return Turns((*before, *turns.messages), first_answer, frozenset(i + 1 for i in turns.unlearned))


def _from_instruction(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    instruction, given, response = (_text(fields, name) for name in ("instruction", "input", "output"))
    content = f"{instruction}\n\n{given}" if instruction and given else instruction or given
    return Message("user", content, instruction, given), Message("assistant", response)


def _from_prompt(fields: Mapping[str, Any]) -> Turns:
    history, answer = _turns_in(fields, "prompt", "user"), _turns_in(fields, "completion", "assistant")
    number = len(history.messages)
    unlearned = history.unlearned.union(i + number for i in answer.unlearned)
    return Turns((*history.messages, *answer.messages), number, unlearned)


def _turns_in(fields: Mapping[str, Any], name: str, role: str) -> Turns:
    """Return the turns of a field, or its text as one turn."""
    return _messages(fields, name) if isinstance(fields[name], list) else Turns((Message(role, _text(fields, name)),))


def turn_list(value: Any) -> Any:
    """Return a list of turns that is written as a JSON string as that list, and any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return turns if isinstance(turns, list) else value


def is_dialogue(value: Any) -> bool:
    """Return whether a value is a list of turns that name their roles."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and any(key in turn for key in ROLE_KEYS) for turn in value)
    )


def _messages(fields: Mapping[str, Any], name: str) -> Turns:
    given = turn_list(fields[name])
    if isinstance(given, str):
        raise BadRow(f"{reasons.NOT_TURNS} ({name}: a string that is not a JSON array; Python's json.dumps writes one)")
    if not isinstance(given, list):
        raise BadRow(f"{reasons.NOT_TURNS} ({name}: {kind_of(given)})")
    messages, unlearned = [], set()
    for turn in given:
        if not isinstance(turn, dict):
            raise BadRow(f"{reasons.NOT_TURNS} (a turn of {name}: {kind_of(turn)})")
        role, key = turn.get(_key_of(turn, ROLE_KEYS)), _key_of(turn, CONTENT_KEYS)
        if not isinstance(role, str) or role.strip().lower() not in ROLES:
            raise BadRow(
                reasons.UNKNOWN_ROLE, f"role {one_line(role[:SHOWN])}" if isinstance(role, str) else kind_of(role)
            )
        if key not in turn:
            raise BadRow(reasons.NO_CONTENT)
        messages.append(Message(ROLES[role.strip().lower()], _content(turn, key)))
        if messages[-1].role == "assistant" and not _is_learned(turn):
            unlearned.add(len(messages) - 1)
    return Turns(tuple(messages), unlearned=frozenset(unlearned))


def _is_learned(turn: Mapping[str, Any]) -> bool:
    """Return whether an assistant turn is learned: yes, unless one of its marks says no.

    Raises:
        BadRow: A mark is neither yes nor no, or marks only some characters.
    """
    for name in LEARNED_SPANS:
        if _is_there(turn.get(name)):
            raise BadRow(reasons.LEARNT_IN_PART, name)
    marks = [(name, turn[name]) for name in (*LEARNED_IF_TRUE, *LEARNED_IF_FALSE) if turn.get(name) is not None]
    said = [_is_yes(name, value) != (name in LEARNED_IF_FALSE) for name, value in marks]
    return all(said)


def _is_yes(name: str, value: Any) -> bool:
    text = str(value).strip().lower() if isinstance(value, str | int | float) else ""
    try:
        number = float(text) if text not in (*YES, *NO) else float(text in YES)
    except ValueError:
        number = -1.0
    if number not in (0.0, 1.0):
        raise BadRow(reasons.NOT_A_MARK, f"{name}: {one_line(value)[:SHOWN]}")
    return number == 1.0


def _content(turn: Mapping[str, Any], key: str) -> str:
    """Return the text of a turn: a string, or text parts, which are joined as chat templates join them.

    Raises:
        BadRow: A part is not text.
    """
    parts = turn[key]
    if isinstance(parts, dict):
        parts = [parts]
    if not isinstance(parts, list):
        return _text(turn, key)
    texts = []
    for part in parts:
        if isinstance(part, str):
            part = {"text": part}
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        if not isinstance(part, dict) or kind not in TEXT_PARTS or "text" not in part:
            raise BadRow(reasons.NOT_A_TEXT_PART, f"{key}: {one_line(kind or 'an object without text')[:SHOWN]}")
        texts.append(_text(part, "text"))
    return "".join(texts)


def _key_of(turn: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The key of several of one meaning that a turn has: where schemas were merged, all but one are null."""
    here = [key for key in keys if key in turn]
    return next((key for key in here if turn[key] is not None), here[0] if here else keys[0])


def unread_of(fields: Mapping[str, Any], shape: str) -> tuple[str, ...]:
    """What a row holds beside the dialogue that was read from it, as notes of the census."""
    lists = [turn_list(fields[name]) if name in TURN_FIELDS else fields[name] for name in NEEDED[shape]]
    turns = [turn for held in lists if isinstance(held, list) for turn in held]
    names = {name for turn in turns for name in _unread_names(turn)}
    others = [s for s, needed in NEEDED.items() if s != shape and all(_is_there(fields.get(name)) for name in needed)]
    return (
        *(f"{reasons.UNREAD_FIELD}: {name}" for name in sorted(names)),
        *(f"{reasons.OTHER_SHAPE}: {MEANING[other]}" for other in others),
    )


def _unread_names(turn: Mapping[str, Any]) -> set[str]:
    text = turn.get(_key_of(turn, CONTENT_KEYS))
    held = {str(name): value for name, value in turn.items() if name not in ROLE_KEYS and _is_there(value)}
    known = {name for name in held if name in CONTENT_KEYS and held[name] == text}
    return held.keys() - known - MARKS


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


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: it is empty, white space, or zero-width characters only."""
    return VISIBLE.search(text) is None


def is_whole_text(text: str) -> TypeGuard[str]:
    """Whether a string is of whole characters: JSON can hold half of one (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
