"""What may be meant by a row that cannot be read: the words that end its error."""

from collections.abc import Iterable, Mapping
from typing import Any

from sftmix.data.schemas import MEANING, NEEDED, READ, TURN_FIELDS, is_dialogue, kind_of, turn_list
from sftmix.quoting import hydra_value, shell_word
from sftmix.terminal import counted, one_line

MOST_NAMES, MOST_CHARACTERS = 12, 40
KNOWN = READ.union(*NEEDED.values())
ONE_TEXT = {"text", "texts", "content", "document", "sentence"}  # what a column of whole texts is called


def named(names: Iterable[Any]) -> str:
    """The first of some names, in one line."""
    some = [one_line(name) for name in names]
    shown = [n if len(n) <= MOST_CHARACTERS else f"{n[: MOST_CHARACTERS - 3]}..." for n in some[:MOST_NAMES]]
    more = [f"{len(some) - MOST_NAMES:,} more"] if len(some) > MOST_NAMES else []
    return ", ".join(shown + more) or "none"


def unfit(fields: Any, wanted: str | None) -> str:
    """Why a row fits no shape: what it is, and what was expected."""
    if not isinstance(fields, dict):
        return f"a row is {kind_of(fields)}, expected an object with named fields"
    there = f"the fields are {named(fields)}"
    if wanted is not None:
        return f"data.shape={wanted} needs {MEANING[wanted]}; {there}"
    return f"{there}, expected one of: {'; '.join(MEANING.values())}"


def hint(fields: Any, columns: Mapping[str, str], wanted: str | None, *, is_table: bool) -> str:
    """Return what may help with a row that fits no shape; empty if nothing is known.

    Args:
        fields: what the row holds, as its file names it.
        columns: the column of each known name that is called otherwise there.
        wanted: the shape that was asked for, or None.
        is_table: whether the file names its columns in a header.
    """
    if not isinstance(fields, dict):
        return ""
    if dialogue := next((c for c, value in fields.items() if is_dialogue(turn_list(value)) and c.isprintable()), None):
        return f"{renaming({**columns, 'messages': dialogue})} renames"
    if held := records_in(fields):
        return held
    if respelled := _respelled(fields, columns, wanted):
        return f"Column names are case-sensitive: {renaming({**columns, **respelled})}"
    nearest = _nearest(fields, columns, wanted)
    missing = [name for name in NEEDED[nearest] if name not in _known_as(fields, columns)]
    renames = f"{renaming({**columns, **dict.fromkeys(missing, 'NAME')})} renames"
    left = _columns_left(fields, columns, nearest)
    whole = [name for name in left if name.strip().lower() in ONE_TEXT]
    if len(left) < len(missing) or (whole and len(missing) > 1):
        one_text = f"; one text ({named(whole[:1] or left)}) does not say where the response begins" if left else ""
        advice = (
            f"A row needs a prompt and a response in fields of their own{one_text}: write two columns, such as "
            f"instruction and output, or messages"
        )
        return advice if len(left) < len(missing) else f"{advice}. If other columns hold them, {renames}"
    return f"Is the header missing? {renames}" if is_table and not KNOWN & _known_as(fields, columns) else renames


def _columns_left(fields: Mapping[str, Any], columns: Mapping[str, str], shape: str) -> list[str]:
    """Return the columns that may be renamed to what a shape lacks."""
    names = {column: name for name, column in columns.items()}
    left = [column for column in fields if names.get(column, column) not in READ.union(NEEDED[shape])]
    return [str(c) for c in left if shape not in TURN_FIELDS or isinstance(turn_list(fields[c]), list)]


def records_in(value: Mapping[str, Any]) -> str:
    """What to do where an object holds records that may be rows: a list of them under a key, or all its values."""
    lists = {name: len(held) for name, held in value.items() if _are_records(held)}
    if lists:
        key = max(lists, key=lists.__getitem__)
        return f"If the {counted(lists[key], 'record')} under {named([key])} are the rows, make a file of that list"
    if _are_records(list(value.values())):
        return f"If its {counted(len(value), 'value')} are the rows, make a file of them without their keys"
    return ""


def renaming(columns: Mapping[str, str]) -> str:
    """The setting that renames columns, as a shell takes it."""
    return shell_word(f"data.columns={{{', '.join(f'{name}: {hydra_value(c)}' for name, c in columns.items())}}}")


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, dict) for record in value)


def _known_as(fields: Mapping[str, Any], columns: Mapping[str, str]) -> set[str]:
    names = {column: name for name, column in columns.items()}
    return {names.get(column, column) for column in fields}


def _nearest(fields: Mapping[str, Any], columns: Mapping[str, str], wanted: str | None) -> str:
    """Return the shape that was asked for, or the one that a row has most of."""
    here = _known_as(fields, columns)
    return wanted or max(NEEDED, key=lambda shape: sum(name in here for name in NEEDED[shape]))


def _respelled(fields: Mapping[str, Any], columns: Mapping[str, str], wanted: str | None) -> dict[str, str]:
    """The columns that are known names but for their case and outer blanks, where they make a shape."""
    here = _known_as(fields, columns)
    found = {str(c).strip().lower(): str(c) for c in fields if c not in here & KNOWN and c.isprintable()}
    meant = {name: column for name, column in found.items() if name in KNOWN - {"id", "prompt_id"} - here}
    makes_one = any(here | meant.keys() >= set(NEEDED[s]) for s in ([wanted] if wanted is not None else NEEDED))
    return meant if makes_one else {}
