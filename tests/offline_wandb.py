"""What an offline run of Weights & Biases holds, read back from its `.wandb` file.

The file is a log of LevelDB's format: blocks of 32 KiB, a header of seven bytes in front of each piece of a record. The
records are messages of wandb's own protocol.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HEADER, BLOCK = 7, 32768
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class OfflineRun(NamedTuple):
    """What would be sent.

    Attributes:
        run: id, project, group, job type, name, tags: the protocol's message.
        config: as it was given.
        history: the rows, in their order.
        summary: the last value of each key that was set.
        metrics: for each defined metric its step metric and the summaries that were asked for.
        exit_code: with which it ended; None where it was killed.
    """

    run: Any
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    metrics: dict[str, tuple[str, set[str]]]
    exit_code: int | None


def read_offline(file: Path) -> OfflineRun:
    """Read the file of an offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    run, config, history, summary, metrics, exit_code = None, {}, [], {}, {}, None
    for content in _records(file.read_bytes()):
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= _items(run.config.update)
        elif kind == "history":
            history.append(_items(record.history.item))
        elif kind == "summary":
            summary |= _items(record.summary.update)
        elif kind == "metric":
            metric = record.metric
            wanted = {name for name in ("min", "max", "mean", "last", "none") if getattr(metric.summary, name)}
            metrics[metric.name or metric.glob_name] = (metric.step_metric, wanted)
        elif kind == "exit":
            exit_code = record.exit.exit_code
    assert run is not None, f"no run in {file}"
    return OfflineRun(run, config, history, summary, metrics, exit_code)


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All offline runs in a run's folder, the oldest first."""
    return [read_offline(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    place, parts = HEADER, b""
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:  # no header fits: the rest of the block is empty
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        assert kind in (WHOLE, FIRST, MIDDLE, LAST)
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""
