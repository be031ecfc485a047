"""In which fields two runs differ, by their passports."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftmix.reports.dict_paths import leaves_of
from sftmix.reports.runs import read_record
from sftmix.terminal import one_line

ABSENT = "absent"
# Which fields of `run.json` each part of the report is of; those that are measured differ always.
PARTS = {
    "config": ("config",),
    "data": ("data", "census", "confidence", "seeds", "stage", "scored"),
    "packages": ("python", "environment", "packages"),
    "git": ("git",),
    "hardware": ("hardware", "accelerator", "precision", "layout", "strategy", "devices"),
}
MEASURED = "command and what was measured"


def diff(one: Path, other: Path) -> str:
    """The fields in which two runs differ, as lines: the configuration first, what is measured last.

    Raises:
        InputError: a passport is missing or torn.
    """
    left, right = (_flat(read_record(run / "run.json")) for run in (one, other))
    lines = [f"one    {one_line(one)}", f"other  {one_line(other)}"]
    found = {part: list(_differing(left, right, part)) for part in (*PARTS, MEASURED)}
    if not any(found[part] for part in PARTS):
        lines += ["", f"nothing differs in {', '.join(PARTS)}"]
    for part, rows in found.items():
        if not rows:
            continue
        width = max(len(name) for name, _, _ in rows)
        middle = max(len(mine) for _, mine, _ in rows)
        lines += ["", part, *(f"  {name:<{width}}  {mine:<{middle}}  {theirs}" for name, mine, theirs in rows)]
    return "\n".join(lines)


def _differing(left: Mapping[str, Any], right: Mapping[str, Any], part: str) -> Iterator[tuple[str, str, str]]:
    """Name and both values of each field of a part that is not the same."""
    for name in dict.fromkeys((*left, *right)):
        mine, theirs = (_in_words(side[name]) if name in side else ABSENT for side in (left, right))
        if _part_of(name) == part and mine != theirs:
            yield one_line(name.removeprefix(f"{part}.")), mine, theirs


def _part_of(name: str) -> str:
    first = name.partition(".")[0]
    return next((part for part, fields in PARTS.items() if first in fields), MEASURED)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record by their dotted names; of the environment, each package's version."""
    if isinstance(record.get("environment"), list):
        pairs = (str(entry).partition("==") for entry in record["environment"])
        whole = {name: version for name, _, version in pairs}
        record = {**{k: v for k, v in record.items() if k != "packages"}, "environment": whole}
    return leaves_of(record)


def _in_words(value: Any) -> str:
    return one_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
