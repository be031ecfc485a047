"""Tables in Arrow files: what was written is read unchanged."""

import numpy as np
import pyarrow as pa
import pytest

from sftmix.data.encoding import EncodedExample, FittedExample
from sftmix.data.example import Example, Message
from sftmix.data.shards import (
    EXAMPLES,
    TOKENS,
    EncodedExamples,
    Examples,
    example_columns,
    map_shards,
    token_columns,
    write_shard,
)

MANY = [
    Example(
        f"{i:016x}",
        (Message("system", "S"), Message("user", f"ü {i}\n\n{i}", f"ü {i}", str(i))),
        f"response {i} \x1b[0m",
        "f.json",
        i + 1,
        "g" * (i % 2),
        f"{i // 2:016x}",
        i % 3 > 0,
        0.5 + i,
    )
    for i in range(10)
]
ENCODED = [EncodedExample(f"{i:016x}", tuple(range(i, 2 * i + 2)), 1) for i in range(10)]


def test_written_examples_are_read_unchanged(tmp_path):
    for number, part in enumerate((MANY[:4], MANY[4:9], MANY[9:], [])):
        write_shard(tmp_path / f"{number}.arrow", EXAMPLES, example_columns(part))
    found = Examples(map_shards(tmp_path, EXAMPLES))
    assert len(found) == 10
    assert list(found) == MANY
    assert found[3:6] == MANY[3:6]
    with pytest.raises(IndexError):
        found[10]


def test_written_token_ids_are_read_unchanged(tmp_path):
    for number, (start, stop) in enumerate(((0, 3), (3, 3), (3, 10))):
        fitted = [FittedExample(k, e, True, "") for k, e in enumerate(ENCODED[start:stop])]
        write_shard(tmp_path / f"{number}.arrow", TOKENS, token_columns(fitted, MANY[start:stop], start))
    found = EncodedExamples(map_shards(tmp_path, TOKENS))
    assert list(found) == ENCODED
    assert found.ids == [e.example_id for e in ENCODED]
    assert found.lengths.tolist() == [len(e.input_ids) for e in ENCODED]
    assert found.num_response_tokens.tolist() == [e.num_response_tokens for e in ENCODED]
    assert found.lines.tolist() == list(range(10))
    assert found.select(np.array([3, 1])).weights.tolist() == [3.5, 1.5]


def test_files_from_before_there_were_weights_have_the_weight_one(tmp_path):
    old = pa.schema([field for field in EXAMPLES if field.name != "weight"])
    columns = example_columns(MANY)
    write_shard(tmp_path / "0.arrow", old, {name: columns[name] for name in old.names})
    assert [e.weight for e in Examples(map_shards(tmp_path, EXAMPLES))] == [1.0] * 10
    table = EncodedExamples.of(ENCODED).table.drop_columns(["weight"])
    assert EncodedExamples(table).select(np.array([4, 2])).weights.tolist() == [1.0, 1.0]


def test_a_selection_is_a_view_in_its_order():
    found = EncodedExamples.of(ENCODED)
    some = found.select(np.array([7, 2, 9]))
    assert list(some) == [ENCODED[k] for k in (7, 2, 9)]
    assert list(some.select(np.array([False, True, True]))) == [ENCODED[2], ENCODED[9]]
    assert some.ids == [ENCODED[k].example_id for k in (7, 2, 9)]
    both = some.joined(found.select(np.arange(2)))
    assert list(both) == [ENCODED[k] for k in (7, 2, 9, 0, 1)]
    assert some.table is found.table, "nothing is copied"


def test_an_empty_folder_is_an_empty_table(tmp_path):
    assert len(Examples(map_shards(tmp_path, EXAMPLES))) == 0
    empty = EncodedExamples(map_shards(tmp_path, TOKENS))
    assert (len(empty), empty.ids, empty.lengths.tolist()) == (0, [], [])
