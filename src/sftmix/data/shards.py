"""Tables of examples and token ids in Arrow files that are mapped into memory: only what is read takes memory."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    }
)


def write_shard(path: Path, schema: pa.Schema, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length as an Arrow file."""
    batch = pa.record_batch([pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema)
    with ipc.new_file(path, schema) as writer:
        writer.write_batch(batch)


def map_shards(folder: Path, schema: pa.Schema) -> pa.Table:
    """Return the rows of all Arrow files of a folder, in the order of the files' names, mapped into memory.

    Raises:
        InputError: If a file cannot be read.
    """
    tables = [map_shard(file) for file in sorted(folder.glob("*.arrow"))]
    try:
        return pa.concat_tables(tables) if tables else schema.empty_table()
    except pa.ArrowException as error:
        why = f"its Arrow files differ in their columns ({first_line(error)})"
        raise InputError(f"{folder}: {why}; delete {folder} and run the same command again") from None


def map_shard(file: Path) -> pa.Table:
    """Return the rows of an Arrow file, mapped into memory; raise an InputError if the file cannot be read."""
    try:
        return ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(file, f"cannot be read, expected an Arrow file ({first_line(error)})") from None


def example_columns(examples: Iterable[Example]) -> dict[str, list[Any]]:
    """Return examples as columns of the schema `EXAMPLES`."""
    some = list(examples)
    return {
        "example_id": [e.id for e in some],
        "dialogue": [e.dialogue for e in some],
        "source": [e.source for e in some],
        "row": [e.row for e in some],
        "group": [e.group for e in some],
        "is_whole": [e.is_whole for e in some],
        "messages": [json.dumps([m.as_dict() for m in e.messages], ensure_ascii=False) for e in some],
        "response": [e.response for e in some],
    }


def token_columns(fitted: Sequence[FittedExample], examples: Sequence[Example], first: int) -> dict[str, list[Any]]:
    """Return encoded examples as columns of the schema `TOKENS`.

    Args:
        examples: Examples that they were encoded from; `FittedExample.example_index` counts these.
        first: Index of the first of these examples in the table of examples.
    """
    return {
        "example_id": [f.encoded.example_id for f in fitted],
        "dialogue": [examples[f.example_index].dialogue for f in fitted],
        "line": [first + f.example_index for f in fitted],
        "is_whole": [f.is_whole for f in fitted],
        "shortened": [f.shortened for f in fitted],
        "num_prompt_tokens": [f.encoded.num_prompt_tokens for f in fitted],
        "input_ids": [f.encoded.input_ids for f in fitted],
    }


class Examples(Sequence[Example]):
    """Examples in an Arrow table, mapped or in memory."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._batches = _Batches(table)

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Examples":
        """Create a table in memory."""
        columns = example_columns(examples)
        return cls(pa.table({name: pa.array(columns[name], EXAMPLES.field(name).type) for name in EXAMPLES.names}))

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, line: int) -> Example: ...
    @overload
    def __getitem__(self, line: slice) -> list[Example]: ...
    def __getitem__(self, line: int | slice) -> Example | list[Example]:
        if isinstance(line, slice):
            return [self[k] for k in range(*line.indices(len(self)))]
        batch, k = self._batches.find(line)
        row = {name: batch.column(name)[k].as_py() for name in EXAMPLES.names}
        messages = tuple(Message(**turn) for turn in json.loads(row["messages"]))
        return Example(
            row["example_id"],
            messages,
            row["response"],
            row["source"],
            row["row"],
            row["group"],
            row["dialogue"],
            row["is_whole"],
        )


class EncodedExamples(Sequence[EncodedExample]):
    """Token ids of examples in an Arrow table, mapped or in memory. Only their lengths are held in arrays.

    Attributes:
        lengths: Tokens of prompt and response, int32 `[example]`.
        num_prompt_tokens: Tokens of the prompt, int32 `[example]`.
        lines: Index in the table of examples, int64 `[example]`.
    """

    def __init__(self, table: pa.Table, indices: np.ndarray | None = None) -> None:
        """Take the lines `indices` of a table with the columns of `TOKENS`, in this order; None for all lines."""
        self.table = table
        self.indices = np.arange(len(table)) if indices is None else indices
        self._batches = _Batches(table)
        lengths = compute.list_value_length(table.column("input_ids"))
        self.lengths: np.ndarray = _numpy(lengths, np.int32)[self.indices]
        self.num_prompt_tokens: np.ndarray = _numpy(table.column("num_prompt_tokens"), np.int32)[self.indices]
        self.lines: np.ndarray = _numpy(table.column("line"), np.int64)[self.indices]

    @classmethod
    def of(cls, encoded: Iterable[EncodedExample]) -> "EncodedExamples":
        """Create a table in memory in which each example is a dialogue by itself."""
        some = list(encoded)
        dialogues = [Example(e.example_id, (), "", "", k, "", e.example_id) for k, e in enumerate(some)]
        return cls.of_columns(token_columns([FittedExample(k, e, True, "") for k, e in enumerate(some)], dialogues, 0))

    @classmethod
    def of_columns(cls, columns: Mapping[str, Sequence[Any]]) -> "EncodedExamples":
        """Create a table in memory from the columns of `TOKENS`."""
        return cls(pa.table({name: pa.array(columns[name], TOKENS.field(name).type) for name in TOKENS.names}))

    @property
    def num_response_tokens(self) -> np.ndarray:
        """Number of response tokens, int32 `[example]`."""
        return self.lengths - self.num_prompt_tokens

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
        batch, k = self._batches.find(int(self.indices[number]))
        ids = batch.column("input_ids")[k].values.to_numpy(zero_copy_only=True)
        return EncodedExample(
            batch.column("example_id")[k].as_py(), tuple(ids.tolist()), int(self.num_prompt_tokens[number])
        )


class _Batches:
    """Finds the batch of a table that holds a line."""

    def __init__(self, table: pa.Table) -> None:
        self.batches = [batch for batch in table.to_batches() if len(batch)]
        self.starts = np.cumsum([0, *(len(batch) for batch in self.batches)])

    def find(self, line: int) -> tuple[pa.RecordBatch, int]:
        """Return the batch that holds a line, and the index of the line in the batch."""
        if not 0 <= line < self.starts[-1]:
            raise IndexError(line)
        k = int(np.searchsorted(self.starts, line, side="right")) - 1
        return self.batches[k], line - int(self.starts[k])


def _numpy(column: pa.ChunkedArray, dtype: Any) -> np.ndarray:
    parts: Iterator[np.ndarray] = (chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks)
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
