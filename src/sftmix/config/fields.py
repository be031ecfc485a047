"""Kinds of fields of the config: ranges, paths, and the mark of fields that change nothing that is learned."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sftmix.errors import ConfigError

MAX_SEED = 2**31 - 1
INERT = "inert"


def number(
    *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf, below: float = math.inf
) -> Any:
    """Declare a number within bounds; `above` and `below` exclude the bound itself."""
    bounds = {"above": above, "at least": least, "at most": most, "below": below}
    words = [f"{word} {bound:.15g}" for word, bound in bounds.items() if math.isfinite(bound)]
    return checked(lambda x: above < x < below and least <= x <= most, " and ".join(words))


def one_of(*allowed: str) -> Any:
    """Declare one of some names."""
    return checked(lambda x: x in allowed, f"one of {', '.join(allowed)}")


def checked(holds: Callable[[Any], bool], expected: str) -> Any:
    """Declare a value with a condition, and the condition in words."""
    return field(metadata={"holds": holds, "expected": expected})


def path_field(*, always: bool = False, holds: Callable[[Any], bool] | None = None, expected: str = "") -> Any:
    """Declare a key whose value is a path, or a list or mapping of paths.

    The command line takes the text of a path literally, and `~` is read as the home folder.

    Args:
        always: Whether the text is taken literally also if no such path exists: the program makes the folder, or
            looks for the name in `root`.
    """
    rule = {} if holds is None else {"holds": holds, "expected": expected}
    return field(metadata={"path": "always" if always else "if it exists", **rule})


def inert(declared: Any = None) -> Any:
    """Mark a field, or every field of a section, as one that changes nothing that is learned.

    An inert field is not part of any fingerprint, and runs that differ only in inert fields are shown as one.
    """
    return field(metadata={**({} if declared is None else declared.metadata), INERT: True})


def effective(declared: Any) -> Any:
    """Mark a field of an inert section as one that changes what is learned."""
    return field(metadata={**declared.metadata, INERT: False})


hints_of = cache(get_type_hints)


def key_of_field(f: Field[Any]) -> str:
    """Return the key of a field. The field of a key that Python reserves has the name of the key and `_`: `from_`."""
    return f.name.removesuffix("_")


def with_field_names(container: Any, schema: Any) -> Any:
    """Return plain containers with the names of the fields of a schema instead of the keys."""
    return _renamed(container, schema, lambda f: (key_of_field(f), f.name))


def with_keys(container: Any, schema: Any) -> Any:
    """Undo `with_field_names`."""
    return _renamed(container, schema, lambda f: (f.name, key_of_field(f)))


def _renamed(container: Any, schema: Any, names: Callable[[Field[Any]], tuple[str, str]]) -> Any:
    if not isinstance(container, dict) or not isinstance(schema, type) or not is_dataclass(schema):
        return container
    renamed, hints = dict(container), hints_of(schema)
    for f in fields(schema):
        old, new = names(f)
        if old in container:
            if old != new:
                del renamed[old]
            renamed[new] = _renamed(container[old], dataclass_of(hints[f.name]), names)
    return renamed


def is_inert(key: str, schema: Any) -> bool:
    """Return whether a dotted key or a group (model/lora) is inert: it or its nearest marked section is."""
    mark, kind = False, schema
    for name in re.split(r"[./]", key):
        declared = {key_of_field(f): f for f in fields(kind)} if is_dataclass(kind) else {}
        if name not in declared:
            break
        mark = declared[name].metadata.get(INERT, mark)
        kind = dataclass_of(hints_of(kind)[declared[name].name])
    return mark


def inert_keys(schema: Any) -> list[str]:
    """Return the dotted keys of a config, without sections, that change nothing that is learned."""
    return [key for key, f, hint in _declared(schema) if dataclass_of(hint) is None and is_inert(key, schema)]


def path_keys(schema: Any) -> dict[str, tuple[bool, type | None]]:
    """Return the dotted keys whose values are paths: whether always, and the container of several paths."""
    return {
        key: (f.metadata["path"] == "always", _container_of(hint))
        for key, f, hint in _declared(schema)
        if "path" in f.metadata
    }


def _container_of(hint: Any) -> type | None:
    """Return list or dict if a type hint allows one, object if it allows both, or None."""
    if hint is Any:
        return object
    origins = [get_origin(option) for option in options_of(hint)]
    return list if list in origins else dict if dict in origins else None


def _declared(schema: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """Yield the dotted key, the field and the type hint of every key of a config, sections included."""
    for f in fields(schema):
        key, hint = f"{prefix}{key_of_field(f)}", hints_of(schema)[f.name]
        yield key, f, hint
        if (section := dataclass_of(hint)) is not None:
            yield from _declared(section, f"{key}.")


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a type hint allows: those of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def dataclass_of(hint: Any) -> Any:
    """Return the dataclass of a type hint, or None if it has none."""
    return next((option for option in options_of(hint) if is_dataclass(option)), None)


def is_count(value: Any) -> bool:
    """Return whether a value is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_pinned(key: str, hub_id: str | None, revision: str | None) -> None:
    """Refuse the revision of a hub id that is not a commit."""
    if not re.fullmatch("[0-9a-f]{40}", str(revision)):
        what = f"{hub_id} is read from the hub at a pinned commit"
        raise ConfigError(f"{key}.revision={revision}: {what}, expected its 40 hexadecimal digits")
