"""Kinds of fields of the config: ranges, paths, and the mark of fields that change nothing that is learned."""

import math
import re
from collections.abc import Callable
from dataclasses import field, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sftmix.errors import ConfigError

MAX_SEED = 2**31 - 1


def number(
    *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf, below: float = math.inf
) -> Any:
    """Declare a number within bounds; `above` and `below` exclude the bound itself."""
    words = [
        f"{word} {bound:.15g}"
        for word, bound, open_end in (
            ("above", above, -math.inf),
            ("at least", least, -math.inf),
            ("at most", most, math.inf),
            ("below", below, math.inf),
        )
        if bound != open_end
    ]
    expected = " and ".join(words)
    return checked(lambda x: above < x < below and least <= x <= most, expected)


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

    Args:
        declared: Kind of the field, or None for a field without a range.
    """
    return field(metadata={**({} if declared is None else declared.metadata), INERT: True})


def effective(declared: Any) -> Any:
    """Mark a field of an inert section as one that changes what is learned."""
    return field(metadata={**declared.metadata, INERT: False})


INERT = "inert"


def is_inert(key: str, schema: Any) -> bool:
    """Return whether a key changes nothing that is learned: it or its nearest marked section is inert.

    Args:
        key: Dotted key, or a config group such as model/lora.
        schema: Dataclass of the config.
    """
    mark, kind = False, schema
    for name in re.split(r"[./]", key):
        declared = {f.name: f for f in fields(kind)} if is_dataclass(kind) else {}
        if name not in declared:
            break
        mark = declared[name].metadata.get(INERT, mark)
        kind = dataclass_of(get_type_hints(kind)[name])
    return mark


def inert_keys(schema: Any, prefix: str = "", inherited: bool = False) -> list[str]:
    """Return the dotted keys of a config, without sections, that change nothing that is learned."""
    found = []
    for f in fields(schema):
        mark, kind = f.metadata.get(INERT, inherited), dataclass_of(get_type_hints(schema)[f.name])
        if kind is not None:
            found += inert_keys(kind, f"{prefix}{f.name}.", mark)
        elif mark:
            found.append(f"{prefix}{f.name}")
    return found


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the types that a type hint allows: those of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def dataclass_of(hint: Any) -> Any:
    """Return the dataclass of a type hint, or None if it has none."""
    return next((option for option in options_of(hint) if is_dataclass(option)), None)


def path_keys(schema: Any, prefix: str = "") -> dict[str, tuple[bool, bool]]:
    """Return the dotted keys of a configuration whose values are paths: whether always, whether a list."""
    found: dict[str, tuple[bool, bool]] = {}
    for f in fields(schema):
        hint = get_type_hints(schema)[f.name]
        options = options_of(hint)
        for option in options:
            if is_dataclass(option):
                found |= path_keys(option, f"{prefix}{f.name}.")
        if "path" in f.metadata:
            found[f"{prefix}{f.name}"] = (
                f.metadata["path"] == "always",
                any(get_origin(option) is list for option in options),
            )
    return found


def is_count(value: Any) -> bool:
    """Return whether a value is an integer of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_pinned(key: str, hub_id: str | None, revision: str | None) -> None:
    """Refuse the revision of a hub id that is not a commit.

    Raises:
        ConfigError: The key, the revision, and what is expected.
    """
    if not re.fullmatch("[0-9a-f]{40}", str(revision)):
        raise ConfigError(
            f"{key}.revision={revision}: {hub_id} is read from the hub at a pinned commit, expected its 40 hexadecimal "
            f"digits"
        )
