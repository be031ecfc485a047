"""Schemas of source rows, and the dialogue that a row of each schema holds."""

from collections.abc import Mapping
from typing import Any

from sftmix.data import census as reasons
from sftmix.data.example import Message
from sftmix.data.turns import (
    BadRow,
    Dialogue,
    has_value,
    is_blank,
    text_of_field,
    turn_list,
    turns_of_field,
    unread_names,
    weight_of,
)
from sftmix.errors import InputError

REQUIRED = {  # fields that a row of each schema must have
    "instruction": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
}
SCHEMAS = tuple(REQUIRED)
TURN_FIELDS = ("messages", "conversations")  # lists of turns, also as a JSON string
OPTIONAL = {"input", "system", "group", "id", "prompt_id"}  # fields that are read beside the required ones
MEANING = {
    "instruction": "instruction, input (where there is one) and output",
    "prompt": "prompt and completion",
    "messages": "messages of role and content",
    "conversations": "conversations of from and value (ShareGPT)",
}


def rename_columns(fields: Any, columns: Mapping[str, str], where: str) -> Any:
    """Return the fields of a row under the names of the schemas; a row without named fields is returned as it is.

    Args:
        columns: Column of the source for each schema name that is called otherwise in the source.

    Raises:
        InputError: If the row also has a column under the schema name.
    """
    if not columns or not isinstance(fields, dict):
        return fields
    for name, column in columns.items():
        if column in fields and name in fields and name not in columns.values():
            raise InputError(
                f"{where}: data.columns.{name}={column}, but the row has a column {name} as well: two columns of the "
                f"same meaning"
            )
    names = {column: name for name, column in columns.items()}
    return {names.get(column, column): value for column, value in fields.items()}


def matching_schemas(fields: Any) -> list[str]:
    """Return the schemas whose required fields a row has: one, none, or several if columns mean the same."""
    names = set(fields) if isinstance(fields, dict) else set()
    return [schema for schema, required in REQUIRED.items() if names.issuperset(required)]


def detect_schema(fields: Any, requested: str | None, where: str) -> str | None:
    """Return the schema of a row, or None if it does not have the requested one; raise an InputError if several fit."""
    found = matching_schemas(fields)
    if requested is not None:
        return requested if requested in found else None
    if len(found) > 1:
        readings = " and ".join(MEANING[schema] for schema in found)
        raise InputError(f"{where}: two ways to read a row, {readings}; choose one by data.schema={found[0]}")
    return found[0] if found else None


def read_dialogue(fields: Any, schema: str, weight_field: str | None = None) -> Dialogue:
    """Return the dialogue of a row; raise a BadRow if the row has another schema, or a field that cannot be read.

    Args:
        weight_field: Field of a turn that holds its weight. If given, the field `weight` of the row is read too.
    """
    if schema not in matching_schemas(fields):
        raise BadRow(reasons.OTHER_SCHEMA)
    dialogue = _dialogue(fields, schema, weight_field)
    weight = None if weight_field is None else weight_of(fields, "weight")
    return dialogue if weight is None else dialogue._replace(weight=weight)


def _dialogue(fields: Any, schema: str, weight_field: str | None) -> Dialogue:
    system = text_of_field(fields, "system")
    before = () if is_blank(system) else (Message("system", system),)
    if schema == "instruction":
        instruction, given, response = (text_of_field(fields, name) for name in ("instruction", "input", "output"))
        content = f"{instruction}\n\n{given}" if instruction and given else instruction or given
        return Dialogue((*before, Message("user", content, instruction, given), Message("assistant", response)))
    if schema == "prompt":
        history = _turns_in(fields, "prompt", "user", weight_field)
        answer = _turns_in(fields, "completion", "assistant", weight_field)
        count = len(history.messages)
        unlearned = history.unlearned.union(i + count for i in answer.unlearned)
        dialogue = Dialogue((*history.messages, *answer.messages), count, unlearned)
    else:
        dialogue = turns_of_field(fields, schema, weight_field)
    systems = [m.content for m in dialogue.messages if m.role == "system"]
    if not before or systems:
        return dialogue._replace(lost_system=bool(before) and system not in systems)
    first_answer = dialogue.first_answer + 1 if dialogue.first_answer else 0
    return Dialogue((*before, *dialogue.messages), first_answer, frozenset(i + 1 for i in dialogue.unlearned))


def unread_parts(fields: Mapping[str, Any], schema: str, weight_field: str | None = None) -> tuple[str, ...]:
    """Return what a row holds beside the dialogue that is read from it, as notes of the data report."""
    lists = [turn_list(fields[name]) if name in TURN_FIELDS else fields[name] for name in REQUIRED[schema]]
    turns = [turn for value in lists if isinstance(value, list) for turn in value]
    names = {name for turn in turns for name in unread_names(turn)} - {weight_field}
    others = [s for s, required in REQUIRED.items() if s != schema and all(has_value(fields.get(r)) for r in required)]
    return (
        *(f"{reasons.UNREAD_FIELD}: {name}" for name in sorted(names)),
        *(f"{reasons.SECOND_SCHEMA}: {MEANING[other]}" for other in others),
    )


def _turns_in(fields: Mapping[str, Any], name: str, role: str, weight_field: str | None) -> Dialogue:
    """Return the turns of a field, or its text as one turn."""
    if isinstance(fields[name], list):
        return turns_of_field(fields, name, weight_field)
    return Dialogue((Message(role, text_of_field(fields, name)),))
