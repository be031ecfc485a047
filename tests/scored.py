"""Write finished runs and their scores without training: what the analyses of a split read."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sftmix.artifacts.artifact import Artifact, making
from sftmix.artifacts.files import write_json
from sftmix.artifacts.tables import write_table
from sftmix.data.shards import EXAMPLES, write_shard

DATA = {"reading": 4, "source": {"sha256": "00", "read_as": "json"}, "schema": None, "columns": {}, "limit": None}
SHOWN = 300


class Row(NamedTuple):
    """An example and its perplexity under each checkpoint."""

    instruction: str
    response: str
    perplexity: Sequence[float]
    group: str = ""
    source: str = "rows.json"
    subset: str | None = "confident"
    part: str = "train"
    num_tokens: int = 4

    @property
    def id(self) -> str:
        return hashlib.sha256(f"{self.instruction}\0{self.response}".encode()).hexdigest()[:16]


class Written(NamedTuple):
    """Folders that were written."""

    run: Path
    confidence: Path
    prepared: Path | None


def write_scored_run(
    root: Path,
    rows: Sequence[Row],
    *,
    prepared: bool = True,
    more: Mapping[str, Any] = {},
    name: str = "sftmix-x",
    command: Sequence[str] | None = None,
) -> Written:
    """Write a run that was split by confidence, its scores and, unless `prepared=False`, the whole texts.

    Args:
        more: Further fields of the run, such as `use`.
        command: Recorded command of the run.
    """
    scores = _artifact(root, "confidence-x", {"kind": "confidence", "data": DATA, "checkpoints": "0" * 8})
    with making(scores) as folder:
        if folder is not None:
            write_table(folder / "confidence.parquet", confidence_columns(rows))
            write_table(folder / "examples.parquet", _readable_columns(rows))
            write_json(folder / "run.json", {"stage": "confidence"})
    data = {**DATA, "epochs": 3}
    fields = {"kind": "run", "data": data, "seed": 0, "confidence": scores.fingerprint, "use": None, **more}
    run = _artifact(root, name, fields)
    with making(run) as folder:
        assert folder is not None
        split = {"example_id": [r.id for r in rows], "part": [r.part for r in rows], "subset": [r.subset for r in rows]}
        write_table(folder / "split.parquet", split)
        write_json(folder / "run.json", {"stage": "target", "config": {"seed": 0}, "command": command})
    return Written(run.folder, scores.folder, _write_prepared(root, rows) if prepared else None)


def write_first_epoch_run(root: Path, rows: Sequence[Row], ranks: Sequence[float]) -> Path:
    """Write a run that was split by the losses of its first epoch, and return its folder."""
    fields = {"kind": "run", "data": {**DATA, "epochs": 3}, "seed": 0, "confidence": "first_epoch", "use": None}
    run = _artifact(root, "sftmix-first", fields)
    with making(run) as folder:
        assert folder is not None
        write_table(folder / "confidence.parquet", confidence_columns(rows))
        write_table(folder / "examples.parquet", _readable_columns(rows))
        split = {name: [getattr(row, name) for row in rows] for name in ("part", "subset")}
        write_table(folder / "split.parquet", {"example_id": [r.id for r in rows], **split, "confidence": list(ranks)})
        write_json(folder / "run.json", {"stage": "target", "config": {"seed": 0}, "command": None})
    return run.folder


def confidence_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the columns of `confidence.parquet`. A perplexity of 0 is left out: the checkpoint did not score."""
    cells = [
        (row, number, p) for number in range(len(rows[0].perplexity)) for row in rows for p in [row.perplexity[number]]
    ]
    cells = [cell for cell in cells if cell[2] != 0]
    nll = [800.0 * row.num_tokens if math.isinf(p) else math.log(p) * row.num_tokens for row, _, p in cells]
    return {
        "example_id": [row.id for row, _, _ in cells],
        "checkpoint": [number + 1 for _, number, _ in cells],
        "num_tokens": [row.num_tokens for row, _, _ in cells],
        "nll": nll,
    }


def _readable_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    scored = [(k, row) for k, row in enumerate(rows, start=1) if 0 not in row.perplexity]
    return {
        "example_id": [row.id for _, row in scored],
        "part": [row.part for _, row in scored],
        "source": [row.source for _, row in scored],
        "row": [k for k, _ in scored],
        "group": [row.group for _, row in scored],
        "instruction": [row.instruction[:SHOWN] for _, row in scored],
        "response": [row.response[:SHOWN] for _, row in scored],
    }


def _write_prepared(root: Path, rows: Sequence[Row]) -> Path:
    artifact = _artifact(root / "data", "examples-x", {"kind": "examples", **DATA})
    with making(artifact) as folder:
        if folder is not None:
            turns = [json.dumps([{"role": "user", "content": row.instruction}]) for row in rows]
            columns = {
                "example_id": [row.id for row in rows],
                "dialogue": [row.id for row in rows],
                "source": [row.source for row in rows],
                "row": list(range(1, len(rows) + 1)),
                "group": [row.group for row in rows],
                "is_whole": [True] * len(rows),
                "messages": turns,
                "response": [row.response for row in rows],
                "weight": [1.0] * len(rows),
            }
            write_shard(folder / "00000.arrow", EXAMPLES, columns)
    return artifact.folder


def _artifact(root: Path, title: str, fields: Mapping[str, Any]) -> Artifact:
    return Artifact(root, title, fields)
