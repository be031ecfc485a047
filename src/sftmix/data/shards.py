"""Tables of examples and token ids in Arrow files, mapped into memory: only lines that are read take memory."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from pyarrow import compute, ipc

from sftmix.artifacts.manifest import damaged
from sftmix.data.encoding import EncodedExample, FittedExample
from sftmix.data.example import Example, Message
from sftmix.errors import InputError, first_line

EXAMPLES = pa.schema(
    {
        "example_id": pa.string(),
        "dialogue": pa.string(),
        "source": pa.string(),
        "row": pa.int64(),
        "group": pa.string(),
        "is_whole": pa.bool_(),
        "messages": pa.string(),  # JSON: turns before the response, as a chat template receives them
        "response": pa.string(),
        "weight": pa.float64(),  # weight in next-token prediction; files of earlier versions have none
    }
)
TOKENS = pa.schema(
    {
        "example_id": pa.string(),
        "dialogue": pa.string(),
        "line": pa.int64(),  # index of the example in the table of examples
        "is_whole": pa.bool_(),  # whether its row was kept without change
        "shortened": pa.string(),  # why the example was shortened; empty if it was not
        "num_prompt_tokens": pa.int32(),
        "input_ids": pa.list_(pa.int32()),
        "weight": pa.float64(),
    }
)


def write_shard(path: Path, schema: pa.Schema, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length as an Arrow file."""
    with ipc.new_file(path, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=schema))


def map_shards(folder: Path, schema: pa.Schema) -> pa.Table:
    """Return the table of all Arrow files of a folder, sorted by name; raise an InputError if one cannot be read."""
    tables = [map_shard(file) for file in sorted(folder.glob("*.arrow"))]
    try:
        return pa.concat_tables(tables) if tables else schema.empty_table()
    except pa.ArrowException as error:
        why = f"its Arrow files differ in their columns ({first_line(error)})"
        raise InputError(f"{folder}: {why}; delete {folder} and run the same command again") from None


def map_shard(file: Path) -> pa.Table:
    """Return the table of an Arrow file; raise an InputError if the file cannot be read."""
    try:
        return ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(file, f"cannot be read, expected an Arrow file ({first_line(error)})") from None


def example_columns(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """Return examples as columns of the schema `EXAMPLES`."""
    same = ("dialogue", "source", "row", "group", "is_whole", "response", "weight")
    return {
        "example_id": [e.id for e in examples],
        "messages": [json.dumps([m.as_dict() for m in e.messages], ensure_ascii=False) for e in examples],
        **{name: [getattr(e, name) for e in examples] for name in same},
    }


def token_columns(fitted: Sequence[FittedExample], examples: Sequence[Example], first: int) -> dict[str, list[Any]]:
    """Return encoded examples as columns of the schema `TOKENS`.

    Args:
        examples: Examples that `FittedExample.example_index` counts.
        first: Index of the first of `examples` in the table of examples.
    """
    return {
        "example_id": [f.encoded.example_id for f in fitted],
        "dialogue": [examples[f.example_index].dialogue for f in fitted],
        "line": [first + f.example_index for f in fitted],
        "is_whole": [f.is_whole for f in fitted],
        "shortened": [f.shortened for f in fitted],
        "num_prompt_tokens": [f.encoded.num_prompt_tokens for f in fitted],
        "input_ids": [f.encoded.input_ids for f in fitted],
        "weight": [examples[f.example_index].weight for f in fitted],
    }


class Examples(Sequence[Example]):
    """Examples in an Arrow table, mapped or in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, line: int) -> Example: ...
    @overload
    def __getitem__(self, line: slice) -> list[Example]: ...
    def __getitem__(self, line: int | slice) -> Example | list[Example]:
        if isinstance(line, slice):
            return [self[k] for k in range(*line.indices(len(self)))]
        fields = {name: self.table.column(name)[line].as_py() for name in self.table.column_names}
        messages = tuple(Message(**turn) for turn in json.loads(fields.pop("messages")))
        return Example(fields.pop("example_id"), messages, **fields)


class EncodedExamples(Sequence[EncodedExample]):
    """Token ids of examples in an Arrow table, mapped or in memory. Only lengths are held in arrays.

    Attributes:
        lengths: Tokens of prompt and response, int32 `[example]`.
        num_prompt_tokens: Tokens of the prompt, int32 `[example]`.
        lines: Index in the table of examples, int64 `[example]`.
    """

    def __init__(self, table: pa.Table, indices: np.ndarray | None = None) -> None:
        """Hold the lines `indices` of a table of the schema `TOKENS`, in this order; None for all lines."""
        self.table = table
        self.indices = np.arange(len(table)) if indices is None else indices
        self.lengths: np.ndarray = compute.list_value_length(table.column("input_ids")).to_numpy()[self.indices]
        self.num_prompt_tokens: np.ndarray = table.column("num_prompt_tokens").to_numpy()[self.indices]
        self.lines: np.ndarray = table.column("line").to_numpy()[self.indices]

    @classmethod
    def of(cls, encoded: Iterable[EncodedExample]) -> "EncodedExamples":
        """Create a table in memory in which each example is a dialogue by itself."""
        some = list(encoded)
        dialogues = [Example(e.example_id, (), "", "", k, "", e.example_id) for k, e in enumerate(some)]
        fitted = [FittedExample(k, e, True, "") for k, e in enumerate(some)]
        return cls(pa.table(token_columns(fitted, dialogues, 0), schema=TOKENS))

    @property
    def num_response_tokens(self) -> np.ndarray:
        """Number of response tokens, int32 `[example]`."""
        return self.lengths - self.num_prompt_tokens

    @property
    def weights(self) -> np.ndarray:
        """Weight of each response in next-token prediction, float64 `[example]`: 1 unless the source has weights."""
        has_weights = "weight" in self.table.column_names
        return self.column("weight").to_numpy() if has_weights else np.ones(len(self))

    @property
    def ids(self) -> list[str]:
        return self.column("example_id").to_pylist()

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of the table for these examples, in their order."""
        return self.table.column(name).take(self.indices)

    def select(self, chosen: np.ndarray) -> "EncodedExamples":
        """Return some of the examples, chosen by a mask or by indices."""
        return EncodedExamples(self.table, self.indices[chosen])

    def joined(self, others: "EncodedExamples") -> "EncodedExamples":
        """Return these examples followed by others of the same table; raise a ValueError if the tables differ."""
        if others.table is not self.table:
            raise ValueError("the examples belong to two tables, expected one")
        return EncodedExamples(self.table, np.concatenate([self.indices, others.indices]))

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, number: int) -> EncodedExample: ...
    @overload
    def __getitem__(self, number: slice) -> list[EncodedExample]: ...
    def __getitem__(self, number: int | slice) -> EncodedExample | list[EncodedExample]:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        line = int(self.indices[number])
        ids = self.table.column("input_ids")[line].values.to_numpy()
        example_id = self.table.column("example_id")[line].as_py()
        return EncodedExample(example_id, tuple(ids.tolist()), int(self.num_prompt_tokens[number]))
