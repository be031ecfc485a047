"""Values of nested containers by their dotted names."""

from collections.abc import Mapping
from typing import Any

MISSING = object()


def leaves_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All values that are no container of others, by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(leaves_of(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def look_up(values: Any, dotted: str) -> Any:
    """The value of a dotted name; `MISSING` where a part of it is not there."""
    for key in dotted.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return MISSING
        values = values[key]
    return values
