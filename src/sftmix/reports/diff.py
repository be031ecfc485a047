"""Values of nested dicts by their dotted names, and the fields in which two runs differ."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftmix.provenance.runs import read_record
from sftmix.terminal import one_line

MISSING = object()
# Fields of `run.json` in each section of the report; measured fields always differ.
SECTIONS = {
    "config": ("config",),
    "data": ("data", "census", "confidence", "seeds", "stage", "scored"),
    "packages": ("python", "environment", "packages"),
    "git": ("git",),
    "hardware": ("hardware", "accelerator", "precision", "layout", "strategy", "devices"),
}
MEASURED = "command and what was measured"


def leaves_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all values that are not dicts, and empty dicts, by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(leaves_of(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def look_up(values: Any, dotted: str) -> Any:
    """Return the value of a dotted name, or `MISSING` if there is none."""
    for key in dotted.split("."):
        if not isinstance(values, Mapping) or key not in values:
            return MISSING
        values = values[key]
    return values


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the dotted names of the values in which two dicts differ."""
    left, right = leaves_of(one), leaves_of(other)
    return [name for name in dict.fromkeys((*left, *right)) if left.get(name, MISSING) != right.get(name, MISSING)]


def diff(one: Path, other: Path) -> str:
    """Return the fields in which the `run.json` of two runs differ, as lines: config first, measured fields last.

    Raises:
        InputError: If a `run.json` is missing or damaged.
    """
    left, right = (_flat(read_record(run / "run.json")) for run in (one, other))
    lines = [f"one    {one_line(one)}", f"other  {one_line(other)}"]
    section_of = {field: section for section, fields in SECTIONS.items() for field in fields}
    found: dict[str, list[tuple[str, str, str]]] = {section: [] for section in (*SECTIONS, MEASURED)}
    for name in dict.fromkeys((*left, *right)):
        section = section_of.get(name.partition(".")[0], MEASURED)
        mine, theirs = (_in_words(side[name]) if name in side else "absent" for side in (left, right))
        if mine != theirs:
            found[section].append((one_line(name.removeprefix(f"{section}.")), mine, theirs))
    if not any(found[section] for section in SECTIONS):
        lines += ["", f"nothing differs in {', '.join(SECTIONS)}"]
    for section, rows in found.items():
        if not rows:
            continue
        width = max(len(name) for name, _, _ in rows)
        middle = max(len(mine) for _, mine, _ in rows)
        lines += ["", section, *(f"  {name:<{width}}  {mine:<{middle}}  {theirs}" for name, mine, theirs in rows)]
    return "\n".join(lines)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record by their dotted names. The environment becomes the version of each package."""
    if isinstance(record.get("environment"), list):
        pairs = (str(entry).partition("==") for entry in record["environment"])
        whole = {name: version for name, _, version in pairs}
        record = {**{k: v for k, v in record.items() if k != "packages"}, "environment": whole}
    return leaves_of(record)


def _in_words(value: Any) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
