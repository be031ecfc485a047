"""Rows of a source and the examples that the reader makes of them."""

from sftmix.data.census import Census
from sftmix.data.reader import examples_from_rows
from sftmix.data.rows import Row


def rows(*fields):
    return [Row(f"f, row {i}", i, f, "f") for i, f in enumerate(fields, start=1)]


def examples(*fields, limit=None):
    census = Census()
    return examples_from_rows(rows(*fields), census, limit), census


def turn(role, content):
    return {"role": role, "content": content}


def places(census):
    return {reason: [p.removeprefix("f row ") for p in at.first] for reason, at in census.dropped.items()}


def dialogue(*turns):
    return {"messages": [turn({"s": "system", "u": "user", "a": "assistant"}[t[0]], t[1:]) for t in turns]}
