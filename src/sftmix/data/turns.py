"""Read the turns of a dialogue: their roles, their texts, and whether they are learned."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

from sftmix.data import census as reasons
from sftmix.data.example import Message
from sftmix.terminal import one_line

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
YES_OR_NO = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
TEXT_TYPES = (None, "text", "input_text", "output_text")  # types of the parts of a content that are text
# Characters that are not visible: white space, control and format characters, and the other code points that Unicode
# calls default ignorable (fillers, variation selectors, tags); also the empty Braille pattern.
INVISIBLE = (
    r"\s\x00-\x20\x7f-\xa0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5"
    r"\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
VISIBLE = re.compile(f"[^{INVISIBLE}]")
SHOWN = 30  # characters of a value that a message shows
NUMBER = "a number"
KINDS = {type(None): "null", bool: "a boolean", int: NUMBER, float: NUMBER, str: "a string", list: "an array"}


class Dialogue(NamedTuple):
    """The dialogue of a row.

    Attributes:
        messages: All turns, including the last answer.
        first_answer: Index of the first turn that may be learned. Earlier answers are history only.
        unlearned: Indices of the turns that are marked not to be learned.
        weight: Weight of the row in next-token prediction, a factor of the weights of its turns.
        lost_system: Whether the field `system` of the row was ignored because a system turn has another text.
    """

    messages: tuple[Message, ...]
    first_answer: int = 0
    unlearned: frozenset[int] = frozenset()
    weight: float = 1.0
    lost_system: bool = False


class BadRow(Exception):
    """A row that no dialogue can be read from. Its text is a reason of the data report, `detail` what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def kind_of(value: Any) -> str:
    """Return the type of a value in the words of JSON."""
    return "an object" if isinstance(value, dict) else KINDS.get(type(value), f"a {type(value).__name__}")


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
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, dict) and not turn.keys().isdisjoint(ROLE_KEYS) for turn in turns)


def turns_of_field(fields: Mapping[str, Any], name: str, weight_field: str | None = None) -> Dialogue:
    """Return the turns that a field holds as a list, or as a JSON string; raise a BadRow if they cannot be read.

    Args:
        weight_field: Field of a turn that holds its weight in next-token prediction. A turn of weight 0 is not learned.
    """
    turns = turn_list(fields[name])
    if isinstance(turns, str):
        raise BadRow(f"{reasons.NOT_TURNS} ({name}: a string that is not a JSON array; Python's json.dumps writes one)")
    if not isinstance(turns, list):
        raise BadRow(f"{reasons.NOT_TURNS} ({name}: {kind_of(turns)})")
    messages, unlearned = [], set()
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRow(f"{reasons.NOT_TURNS} (a turn of {name}: {kind_of(turn)})")
        role, key = turn.get(_present_key(turn, ROLE_KEYS)), _present_key(turn, CONTENT_KEYS)
        if not isinstance(role, str) or role.strip().lower() not in ROLES:
            found = f"role {one_line(role[:SHOWN])}" if isinstance(role, str) else kind_of(role)
            raise BadRow(reasons.UNKNOWN_ROLE, found)
        if key not in turn:
            raise BadRow(reasons.NO_CONTENT)
        weight = None if weight_field is None else weight_of(turn, weight_field)
        messages.append(Message(ROLES[role.strip().lower()], _content(turn, key), weight=weight))
        if messages[-1].role == "assistant" and (weight == 0 or not _is_learned(turn, weight_field)):
            unlearned.add(len(messages) - 1)
    return Dialogue(tuple(messages), unlearned=frozenset(unlearned))


def weight_of(fields: Mapping[str, Any], name: str) -> float | None:
    """Return the weight that a field holds, None if missing or empty; raise a BadRow if it is not a weight."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise BadRow(reasons.NOT_A_WEIGHT, one_line(value)[:SHOWN])
    return number


def unread_names(turn: Mapping[str, Any]) -> set[str]:
    """Return the fields of a turn that hold a value and are not read."""
    text = turn.get(_present_key(turn, CONTENT_KEYS))
    given = {str(name): value for name, value in turn.items() if has_value(value)}
    same = {name for name in CONTENT_KEYS if given.get(name) == text}
    return given.keys() - same - MARKS - set(ROLE_KEYS)


def has_value(value: Any) -> bool:
    """Return whether a value is neither null nor empty."""
    return value is not None and value not in ("", [], {})


def text_of_field(fields: Mapping[str, Any], name: str) -> str:
    """Return the text of a field, empty if missing or null; raise a BadRow if it is not a string, or not encodable."""
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{reasons.NOT_TEXT} ({name}: {kind_of(value)})")
    if not is_encodable(value):
        raise BadRow(reasons.LONE_SURROGATE)
    return value


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character."""
    return VISIBLE.search(text) is None


def is_encodable(text: str) -> TypeGuard[str]:
    """Return whether a string can be encoded in UTF-8: JSON strings can hold lone surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_learned(turn: Mapping[str, Any], weight_field: str | None) -> bool:
    """Return whether no mark says no. Raise a BadRow if one is neither yes nor no, or marks only some characters."""
    for name in LEARNED_SPANS:
        if has_value(turn.get(name)):
            raise BadRow(reasons.LEARNED_SPAN, name)
    is_learned = True
    for name in (*LEARNED_IF_TRUE, *LEARNED_IF_FALSE):
        if (value := turn.get(name)) is None or name == weight_field:
            continue
        text = str(value).strip().lower() if isinstance(value, str | int | float) else ""
        try:
            number = YES_OR_NO[text] if text in YES_OR_NO else float(text)
        except ValueError:
            number = math.nan
        if number not in (0.0, 1.0):
            raise BadRow(reasons.NOT_A_MARK, f"{name}: {one_line(value)[:SHOWN]}")
        is_learned &= number == (name in LEARNED_IF_TRUE)
    return is_learned


def _content(turn: Mapping[str, Any], key: str) -> str:
    """Return the text of a turn: a string, or joined text parts. Raise a BadRow if a part is not text."""
    if not isinstance(turn[key], list | dict):
        return text_of_field(turn, key)
    texts = []
    for value in turn[key] if isinstance(turn[key], list) else [turn[key]]:
        part = {"text": value} if isinstance(value, str) else value
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        if not isinstance(part, dict) or kind not in TEXT_TYPES or "text" not in part:
            raise BadRow(reasons.NOT_A_TEXT_PART, f"{key}: {one_line(kind or 'an object without text')[:SHOWN]}")
        texts.append(text_of_field(part, "text"))
    return "".join(texts)


def _present_key(turn: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Return the key that a turn uses among several of the same meaning. In merged data sets, the others are null."""
    used = [key for key in keys if turn.get(key) is not None]
    return [*used, *(key for key in keys if key in turn), keys[0]][0]
