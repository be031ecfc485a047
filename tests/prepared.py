"""Rows of a source file, and helpers that read what is prepared from them."""

import json
import os


def write_rows(path, number=60, start=0):
    rows = [
        {"instruction": f"Say {i}.", "input": "x" * (i % 7), "output": f"It is {i}. " + "word " * (i % 9)}
        for i in range(start, start + number)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def encoded_of(context):
    return context.encoded(context.config.model)


def tokens(encoded):
    return [list(part) for part in (encoded.train, encoded.val)]


def folders(tmp_path, kind):
    return [f for f in (tmp_path / "runs" / "data").glob(f"{kind}-*") if f.suffix != ".partial"]


def counts(census):
    found = census.as_dict()
    dropped = {reason.split(" (")[0]: entry["count"] for reason, entry in found["dropped"].items()}
    num_shortened = sum(entry["count"] for entry in found["shortened"].values())
    assert found["total"] == found["kept"] + num_shortened + sum(dropped.values())
    rows = found["rows"]
    assert rows["total"] == rows["kept"] + rows["shortened"] + rows["dropped"]
    return rows, dropped


def end_process(*_):
    """End a worker process without cleaning up. Workers import this module, which is light, to find the function."""
    os._exit(9)
