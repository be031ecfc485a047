"""The scored examples of a run or of a confidence folder as arrays: confidence, perplexities, subsets and texts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, ipc

from sftmix.artifacts.artifact import FIRST_EPOCH, Found, find_artifacts, is_complete
from sftmix.artifacts.files import PARTIAL
from sftmix.artifacts.hashes import content_hash
from sftmix.artifacts.manifest import damaged, read_json, read_manifest
from sftmix.artifacts.tables import read_arrow, read_confidence
from sftmix.errors import InputError, first_line

SHOWN_CHARACTERS = 300  # Characters of a text in examples.parquet
NO_SUBSET = "none"  # Of an example of a run with a split that is in neither subset
READABLE = ("example_id", "part", "source", "row", "group", "instruction", "response")  # Columns of examples.parquet
SPLIT = ("example_id", "part", "subset")  # Columns of split.parquet


@dataclass(frozen=True)
class ScoredExamples:
    """Examples that every checkpoint has scored, one entry each, in the order of `examples.parquet`.

    Attributes:
        confidence: Minus the mean perplexity over `used`, float64 `[example]` (paper, section 3.1). Infinite if a
            perplexity is. Of a run that was split by its first epoch: the rank within a window, 0 to 1.
        variability: Population standard deviation of the perplexity over `used`, float64 `[example]`. NaN if a
            perplexity is infinite.
        perplexity: Perplexity of each response under each checkpoint, float64 `[example, checkpoint]`.
        used: Columns of `perplexity` that count in the confidence: all, or those that the run has split by.
        num_tokens: Response tokens under the first checkpoint, int64 `[example]`.
        subset: `confident`, `unconfident` or `none`. None if the folder has no split.
        part: `train` or `val` (held out). Empty if it is not known.
        group: Label of the row of the source; empty if there is none.
        row: Row of the source, counted from 1, int64 `[example]`; 0 if it is not known.
        turn: Which turn of its dialogue the response answers, counted from 1, int64 `[example]`; 0 if it is not known.
        instruction: Last turn of the user with its input. None if there is no text of the example.
        response: Response. None if there is no text of the example.
        is_cut: Whether the texts are only the first 300 characters of longer ones, bool `[example]`: the prepared data
            is gone, and `examples.parquet` has no more.
        has_ranks: Whether the confidence is a rank, because the run was split by its first epoch.
    """

    ids: list[str]
    confidence: np.ndarray
    variability: np.ndarray
    perplexity: np.ndarray
    used: tuple[int, ...]
    num_tokens: np.ndarray
    subset: list[str] | None
    part: list[str]
    group: list[str]
    source: list[str]
    row: np.ndarray
    turn: np.ndarray
    instruction: list[str | None]
    response: list[str | None]
    is_cut: np.ndarray
    has_ranks: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, chosen: np.ndarray) -> "ScoredExamples":
        """Return the examples of some indices, in their order."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("used", "has_ranks")}
        taken: dict[str, Any] = {
            name: column[chosen] if isinstance(column, np.ndarray) else [column[i] for i in chosen]
            for name, column in columns.items()
            if column is not None
        }
        return replace(self, **taken)


def read_scored_examples(folder: Path, root: Path) -> ScoredExamples:
    """Return the scored examples of a run that was split by confidence, of a reference, or of a confidence folder.

    Args:
        folder: A complete run or a folder of scores.
        root: Folder in which the scores of a run are searched if they are not beside the run.

    Raises:
        InputError: If the folder is not complete, has no scores, or a file is damaged.
    """
    scores, readable, use, data = _find_scores(folder, root)
    examples = _with_perplexity(read_confidence(scores), scores, use)
    if readable is not None:
        examples = _with_rows(examples, _read_columns(readable, READABLE))
    for place in dict.fromkeys((scores.parent.parent, folder.parent, root)):
        if (prepared := _find_prepared(place / "data", data)) is not None:
            examples = _with_prepared_texts(examples, prepared)
            break
    split = folder / "split.parquet"
    if not split.is_file():
        return examples
    has_ranks = scores.parent == folder  # the run was split by the losses of its first epoch
    columns = (*SPLIT, "confidence") if has_ranks else SPLIT
    return _with_split(examples, _read_columns(split, columns), has_ranks=has_ranks)


def _read_columns(file: Path, names: Sequence[str]) -> pa.Table:
    table = read_arrow(file)
    if lacking := [name for name in names if name not in table.column_names]:
        raise damaged(file, f"no column {', '.join(lacking)}")
    return table.select(names)


def _find_scores(folder: Path, root: Path) -> tuple[Path, Path | None, Any, Mapping[str, Any]]:
    """Return the file of scores, `examples.parquet` beside it, which checkpoints count, and the fields of the data."""
    if folder.name.endswith(PARTIAL):
        raise InputError(f"{folder}: is not finished; the command that started it continues it")
    if not is_complete(folder):
        raise InputError(f"{folder}: is neither a finished run nor a folder of scores (no manifest.json in it)")
    manifest = read_manifest(folder)
    fields = manifest.get("fields")
    if not isinstance(fields, dict) or fields.get("kind") not in ("run", "confidence"):
        raise InputError(f"{folder}: is neither a run nor a folder of scores")
    data: Mapping[str, Any] = fields.get("data", {})
    if fields["kind"] == "confidence":
        return folder / "confidence.parquet", folder / "examples.parquet", None, data
    named, use = fields.get("confidence"), fields.get("use")
    if named == FIRST_EPOCH:
        return folder / "confidence.parquet", folder / "examples.parquet", None, data
    if isinstance(named, dict):
        return _given_scores(folder, str(named.get("sha256")), root), None, use, data
    searched = [find_artifacts(place, "confidence") for place in dict.fromkeys((folder.parent, root))]
    found = [artifact for complete, _ in searched for artifact in complete if _is_of_run(artifact, named, manifest)]
    for unreadable, error in (failed for _, some in searched for failed in some):
        if not found and named is not None and unreadable.name.endswith(f"-{named}"):
            raise error
    if not found and named is not None:
        raise InputError(f"{folder}: no folder confidence-*-{named} with its scores, beside it or in {root}")
    if not found:
        bare = {key: value for key, value in data.items() if key != "epochs"}
        others = [artifact for complete, _ in searched for artifact in complete if artifact.fields.get("data") == bare]
        remedy = f"; {others[-1].folder} has scores of the same data" if others else ""
        raise InputError(
            f"{folder}: has no confidence: it was not split by confidence, and no checkpoints of it scored{remedy}"
        )
    best = max(found, key=lambda artifact: artifact.completed)
    return best.folder / "confidence.parquet", best.folder / "examples.parquet", use, best.fields.get("data", {})


def _is_of_run(artifact: Found, named: Any, run: Mapping[str, Any]) -> bool:
    """Return whether a run was split by these scores or, if it was not, whether its checkpoints have scored."""
    if named is None:
        return artifact.fields.get("checkpoints") == run.get("fingerprint")
    return artifact.folder.name.endswith(f"-{named}")


def _given_scores(run: Path, sha256: str, root: Path) -> Path:
    """Return the file of `confidence.path`, if it is still the file that the run was split by."""
    given = (read_json(run / "run.json").get("config") or {}).get("confidence", {}).get("path")
    path = Path(str(given))
    if given is None or not path.is_file() or content_hash(path, root / ".hashes.json") != sha256:
        raise InputError(f"{run}: was split by confidence.path={given}, which is gone or has changed since")
    return path


def _with_perplexity(scores: pa.Table, path: Path, use: Any) -> ScoredExamples:
    """Return the examples that every checkpoint has scored, without their texts."""
    if not len(scores):
        raise InputError(f"{path}: no rows, expected one row for each example and checkpoint")
    coded = scores["example_id"].combine_chunks().dictionary_encode()
    example, checkpoint = coded.indices.to_numpy(), scores["checkpoint"].to_numpy()
    numbers, column = np.unique(checkpoint, return_inverse=True)
    shape = (len(coded.dictionary), len(numbers))
    nll, num_tokens, is_scored = np.full(shape, np.nan), np.zeros(shape, np.int64), np.zeros(shape, bool)
    nll[example, column], num_tokens[example, column] = scores["nll"].to_numpy(), scores["num_tokens"].to_numpy()
    is_scored[example, column] = True
    chosen = np.flatnonzero(is_scored.all(axis=1))
    if not len(chosen):
        raise InputError(f"{path}: no example was scored under each of its {len(numbers)} checkpoints")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        perplexity = np.exp(nll[chosen] / num_tokens[chosen])
        columns = _used_columns(numbers.tolist(), use)
        counted = perplexity[:, columns]
        confidence, variability = -counted.mean(axis=1), counted.std(axis=1)
    ids, num = coded.dictionary.take(pa.array(chosen)).to_pylist(), len(chosen)
    return ScoredExamples(
        ids=ids,
        confidence=confidence,
        variability=variability,
        perplexity=perplexity,
        used=tuple(columns),
        num_tokens=num_tokens[chosen, 0],
        subset=None,
        part=[""] * num,
        group=[""] * num,
        source=[""] * num,
        row=np.zeros(num, np.int64),
        turn=np.zeros(num, np.int64),
        instruction=[None] * num,
        response=[None] * num,
        is_cut=np.zeros(num, bool),
    )


def _used_columns(numbers: list[int], use: Any) -> list[int]:
    """Return the columns of the checkpoints that count: all, the last `use`, or those of the numbers `use`."""
    if use is None:
        return list(range(len(numbers)))
    return [numbers.index(number) for number in (numbers[-use:] if isinstance(use, int) else sorted(use))]


def _with_rows(examples: ScoredExamples, table: pa.Table) -> ScoredExamples:
    """Return the examples with the columns of `examples.parquet`."""
    index = compute.index_in(pa.array(examples.ids, pa.string()), value_set=table["example_id"].combine_chunks())
    own = table.take(index)
    texts = {name: own[name].to_pylist() for name in ("instruction", "response")}
    lengths = [compute.utf8_length(own[name]).fill_null(0).to_numpy() for name in texts]
    return replace(
        examples,
        **texts,
        **{name: own[name].fill_null("").to_pylist() for name in ("part", "group", "source")},
        row=own["row"].fill_null(0).to_numpy(),
        is_cut=np.maximum(*lengths) >= SHOWN_CHARACTERS,
    )


def _find_prepared(folder: Path, data: Mapping[str, Any]) -> Path | None:
    """Return the folder of the prepared examples of the same source, read in the same way, or None."""
    for artifact in find_artifacts(folder, "examples")[0]:
        fields = {key: value for key, value in artifact.fields.items() if key != "kind"}
        if all(key in data and data[key] == value for key, value in fields.items()):
            return artifact.folder
    return None


def _with_prepared_texts(examples: ScoredExamples, folder: Path) -> ScoredExamples:
    """Return the examples with the whole texts of the prepared data."""
    table = pa.concat_tables([_map_shard(file) for file in sorted(folder.glob("*.arrow"))])
    index = compute.index_in(pa.array(examples.ids, pa.string()), value_set=table["example_id"].combine_chunks())
    known = index.is_valid().to_numpy(zero_copy_only=False)
    own = table.take(index)
    users = [None if turns is None else _turns_of_user(json.loads(turns)) for turns in own["messages"].to_pylist()]
    found: dict[str, list[Any]] = {
        "instruction": [None if turns is None else turns[-1] if turns else "" for turns in users],
        "response": own["response"].to_pylist(),
        "source": own["source"].to_pylist(),
        "group": own["group"].to_pylist(),
    }
    texts: dict[str, Any] = {
        name: [old if new is None else new for new, old in zip(values, getattr(examples, name), strict=True)]
        for name, values in found.items()
    }
    row = np.where(known, own["row"].fill_null(0).to_numpy(), examples.row)
    turn = np.array([len(turns or ()) for turns in users], np.int64)
    return replace(examples, **texts, row=row, turn=turn, is_cut=examples.is_cut & ~known)


def _map_shard(file: Path) -> pa.Table:
    try:
        return ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(file, f"cannot be read, expected an Arrow file ({first_line(error)})") from None


def _turns_of_user(messages: list[dict[str, str]]) -> list[str]:
    return [turn["content"] for turn in messages if turn["role"] == "user"]


def _with_split(examples: ScoredExamples, split: pa.Table, *, has_ranks: bool) -> ScoredExamples:
    """Return the examples with the subsets of a run, and with its confidence if it was split by the first epoch."""
    index = compute.index_in(pa.array(examples.ids, pa.string()), value_set=split["example_id"].combine_chunks())
    own = split.take(index)
    part = [new or old for new, old in zip(own["part"].to_pylist(), examples.part, strict=True)]
    subset = own["subset"].cast(pa.string()).fill_null(NO_SUBSET).to_pylist()
    examples = replace(examples, subset=subset, part=part)
    return replace(examples, confidence=own["confidence"].to_numpy(), has_ranks=True) if has_ranks else examples
