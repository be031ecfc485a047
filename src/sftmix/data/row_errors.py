"""Error messages for rows that cannot be read, with the setting that may help."""

from collections.abc import Iterable, Mapping
from typing import Any

from sftmix.data.schemas import MEANING, OPTIONAL, REQUIRED, TURN_FIELDS
from sftmix.data.turns import is_dialogue, kind_of, turn_list
from sftmix.quoting import hydra_value, shell_word
from sftmix.terminal import counted, one_line

MOST_NAMES, MOST_CHARACTERS = 12, 40
KNOWN = OPTIONAL.union(*REQUIRED.values())
ONE_TEXT = {"text", "texts", "content", "document", "sentence"}  # usual names of a column that holds whole texts


def list_names(names: Iterable[Any]) -> str:
    """Return the first names in one line."""
    some = [one_line(name) for name in names]
    shown = [n if len(n) <= MOST_CHARACTERS else f"{n[: MOST_CHARACTERS - 3]}..." for n in some[:MOST_NAMES]]
    more = [f"{len(some) - MOST_NAMES:,} more"] if len(some) > MOST_NAMES else []
    return ", ".join(shown + more) or "none"


def mismatch(fields: Any, requested: str | None) -> str:
    """Return why a row has no schema: what the row holds, and what is expected."""
    if not isinstance(fields, dict):
        return f"a row is {kind_of(fields)}, expected an object with named fields"
    found = f"the fields are {list_names(fields)}"
    if requested is not None:
        return f"data.schema={requested} needs {MEANING[requested]}; {found}"
    return f"{found}, expected one of: {'; '.join(MEANING.values())}"


def error_hint(fields: Any, columns: Mapping[str, str], requested: str | None, *, is_table: bool) -> str:
    """Return what may help with a row that has no schema; empty if nothing is known.

    Args:
        columns: Column of the file for each schema name that is called otherwise in the file.
        is_table: Whether the file begins with a header of column names.
    """
    if not isinstance(fields, dict):
        return ""
    if dialogue := next((c for c, value in fields.items() if is_dialogue(turn_list(value)) and c.isprintable()), None):
        return f"{columns_override({**columns, 'messages': dialogue})} renames"
    if held := records_in(fields):
        return held
    names = {column: name for name, column in columns.items()}
    known = {names.get(column, column) for column in fields}
    # Columns that differ from schema names only in case and outer blanks, if they complete a schema.
    spelled = {str(c).strip().lower(): str(c) for c in fields if c not in known & KNOWN and c.isprintable()}
    respelled = {name: column for name, column in spelled.items() if name in KNOWN - {"id", "prompt_id"} - known}
    schemas = list(REQUIRED) if requested is None else [requested]
    if respelled and any(known | respelled.keys() >= set(REQUIRED[schema]) for schema in schemas):
        return f"Column names are case-sensitive: {columns_override({**columns, **respelled})}"
    nearest = max(schemas, key=lambda schema: sum(name in known for name in REQUIRED[schema]))
    missing = [name for name in REQUIRED[nearest] if name not in known]
    renames = f"{columns_override({**columns, **dict.fromkeys(missing, 'NAME')})} renames"
    others = [c for c in fields if names.get(c, c) not in OPTIONAL.union(REQUIRED[nearest])]
    left = [str(c) for c in others if nearest not in TURN_FIELDS or isinstance(turn_list(fields[c]), list)]
    whole = [name for name in left if name.strip().lower() in ONE_TEXT]
    if len(left) < len(missing) or (whole and len(missing) > 1):
        shown = list_names(whole[:1] or left)
        one_text = f"; one text ({shown}) does not say where the response begins" if left else ""
        advice = (
            f"A row needs a prompt and a response in fields of their own{one_text}: write two columns, such as "
            f"instruction and output, or messages"
        )
        return advice if len(left) < len(missing) else f"{advice}. If other columns hold them, {renames}"
    return f"Is the header missing? {renames}" if is_table and not KNOWN & known else renames


def records_in(value: Mapping[str, Any]) -> str:
    """Return what to do if an object may hold the rows: as a list under a key, or as its values; empty if not."""
    lists = {name: len(items) for name, items in value.items() if _are_records(items)}
    if lists:
        key = max(lists, key=lists.__getitem__)
        return (
            f"If the {counted(lists[key], 'record')} under {list_names([key])} are the rows, make a file of that list"
        )
    if _are_records(list(value.values())):
        return f"If its {counted(len(value), 'value')} are the rows, make a file of them without their keys"
    return ""


def columns_override(columns: Mapping[str, str]) -> str:
    """Return the override that renames columns, quoted for a shell."""
    return shell_word(f"data.columns={{{', '.join(f'{name}: {hydra_value(c)}' for name, c in columns.items())}}}")


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, dict) for record in value)
