"""Rows from files of every kind. Every fault of a file is one line."""

import csv
import gzip
import io
import json
from dataclasses import replace
from functools import cache

import pyarrow
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sftmix.artifacts.artifact import Artifact
from sftmix.artifacts.manifest import read_json
from sftmix.data.files import data_files
from sftmix.data.shards import EXAMPLES, Examples, map_shards
from sftmix.data.sources import read_file
from sftmix.errors import InputError
from sftmix.stages.prepare import READING, describe_reading, make_examples
from sftmix.terminal import visible

ROWS = [{"instruction": "A", "output": "B"}, {"instruction": "Ü", "output": "D\nE"}]


def read(path):
    return list(read_file(path))


def test_a_json_array_and_json_lines_give_the_same_rows(tmp_path):
    array, lines, disguised = tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "c.json"
    array.write_text(json.dumps(ROWS), encoding="utf-8")
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n"
    lines.write_text(text, encoding="utf-8")
    disguised.write_text(text, encoding="utf-8-sig")
    for path in (array, lines, disguised):
        assert [row.fields for row in read(path)] == ROWS
        assert [row.number for row in read(path)] == [1, 2]


def test_a_row_of_several_lines_knows_where_it_begins(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,"2\n\n3"\n\n4,5\n')
    assert [row.where for row in read(tmp_path / "a.csv")] == [f"{tmp_path / 'a.csv'}, line {n}" for n in (2, 6)]


def test_a_row_knows_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read(path)] == [f"{path}, line 1", f"{path}, line 3"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.json", None, r"missing\.json: no such file"),
        ("a.txt", b"a,b", r"a\.txt: expected a file of \.json, \.jsonl, \.csv, \.tsv, \.parquet"),
        ("head.csv", b"a,b\n", r"head\.csv: no rows"),
        ("twice.csv", b"a,b,a\n1,2,3\n", r"twice\.csv, line 1: column a appears twice"),
        ("below.csv", b"\n\r\na,b,a\n1,2,3\n", r"below\.csv, line 3: column a appears twice"),
        ("quote.csv", b'a,b\n1,2\n3,"4\n5,6\n', r"quote\.csv, line 3: not CSV \(a quote that opens in this row is not"),
        ("stray.csv", b'a,b\n"1\n\n2",3\n"4"5,6\n', r"stray\.csv, line 5: not CSV \(',' expected after '\"'\)"),
        (
            "object.json",
            json.dumps({"n": 1, "data": ROWS}, indent=1).encode(),
            r"object\.json: one JSON object, expected an array of rows .*. If the 2 records under data are",
        ),
        (
            "keyed.json",
            json.dumps({"a": ROWS[0], "b": ROWS[1]}, indent=1).encode(),
            r"keyed\.json: one JSON object, .*. If its 2 values are the rows, make a file of them without their keys$",
        ),
        ("row.json", json.dumps(ROWS[0], indent=1).encode(), r"row\.json: one JSON object, expected .* a row a line$"),
        (
            "rows.json",
            "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
            r"rows\.json: an object of several lines, expected an array of rows or a row a line$",
        ),
        ("first.jsonl", b'{"a": \n{"a": 1}\n', r"first\.jsonl, line 1: not JSON"),
        ("latin.csv", b"a,b\n1,2\ncaf\xe9,2\n", r"latin\.csv, line 3: byte 0xe9 is not UTF-8"),
        ("not.parquet", b"PAR1nothing", r"not\.parquet: could not be read as Parquet"),
        ("not.json.gz", b"[]", r"not\.json\.gz: not a complete \.gz file"),
        ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:40], r"cut\.jsonl\.gz: not a complete \.gz file"),
        ("key.jsonl", b'{"a": 1, "a": 2}', r"key\.jsonl, line 1: not JSON \(key 'a' appears twice"),
        ("deep.json", b"[" * 100_000, r"deep\.json, line 1: not JSON"),
        ("long.json", b"[" + b"1" * 5000 + b"]", r"long\.json, line 1: not JSON"),
        ("after.json", b'[{"a": 1}]\n{"a": 2}', r"after\.json, line 2: not JSON \(text after the array"),
        ("comma.json", b'[{"a": 1}\n {"a": 2}]', r"comma\.json, line 2: not JSON \(expected , or \]"),
        ("end.json", b'[{"a": 1}\n', r"end\.json, line 2: not JSON \(the file ends inside the array"),
        ("empty.json", b"", r"empty\.json: the file is empty"),
        ("blank.json", b" \n", r"blank\.json: the file is empty"),
        ("none.json", b"[]", r"none\.json: no rows"),
        ("cut.json", b'[\n {"instruction": "A",\n  "output": "B"},\n {"instr', r"cut\.json, line 4: not JSON"),
        ("cut.jsonl", b'{"a": 1}\n{"a": ', r"cut\.jsonl, line 2: not JSON"),
        ("latin.json", b'[\n{"a": "caf\xe9"}]', r"latin\.json, line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_bad_file_is_an_error_with_file_and_line(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        read(path)
    assert "\n" not in str(error.value)


def write_csv(path, delimiter):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["instruction", "output"])
        writer.writerows([[row["instruction"], row["output"]] for row in ROWS])


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    text = json.dumps(ROWS, ensure_ascii=False).encode()
    for name, content in {
        "array.json": text,
        "array.jsonl": text,
        "array.json.gz": gzip.compress(text, mtime=0),
        "windows.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in ROWS) + b"\r\n",
        "lines.jsonl.gz": gzip.compress(b"\n".join(json.dumps(row).encode() for row in ROWS)),
    }.items():
        (tmp_path / name).write_bytes(content)
    for delimiter, name in ((",", "a.csv"), (";", "b.csv"), ("\t", "c.csv"), ("|", "d.csv"), ("\t", "e.tsv")):
        write_csv(tmp_path / name, delimiter)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    files = data_files(tmp_path)
    assert len(files) == 11
    for file in files:
        assert [row.fields for row in read(file)] == ROWS, file.name
        assert [(row.number, row.source) for row in read(file)] == [(1, file.name), (2, file.name)]


def test_nested_quotes_and_line_ends_in_csv_are_kept(tmp_path):
    said = "He said \"no, 'never'\";\r\nand left, quietly"
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["instruction", "output"], ["Q", said]])
    (tmp_path / "a.csv").write_bytes(buffer.getvalue().encode())
    assert read(tmp_path / "a.csv")[0].fields["output"] == said


def test_only_lines_of_other_length_have_a_problem(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\nA,B\nA,B,C\nA\n")
    assert [bool(row.problem) for row in read(tmp_path / "a.csv")] == [False, True, True]


def test_empty_lines_above_a_header_are_skipped(tmp_path):
    (tmp_path / "a.csv").write_text("\n\ninstruction;output\nA;B\n\nC;D\n")
    assert [(row.number, row.where[-6:], row.fields["output"]) for row in read(tmp_path / "a.csv")] == [
        (1, "line 4", "B"),
        (2, "line 6", "D"),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TURN = st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), JSON | st.sampled_from(["user", "gpt"]))
TEXT = st.text(max_size=8) | st.sampled_from(["\ud800", "caf\udce9", "two\nlines"])
FIELD = st.sampled_from(["instruction", "input", "output", "prompt", "completion", "messages", "conversations", "id"])
ROW = st.dictionaries(FIELD, JSON | st.text() | st.lists(TURN, max_size=4), max_size=5)
MORE = st.dictionaries(TEXT, JSON, max_size=2)
WHOLE = st.builds(lambda more, i, o: {**more, "instruction": i, "output": o}, MORE, TEXT, TEXT)
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
    st.lists(JSON | ROW, max_size=6).map(lambda rows: json.dumps(rows).encode()),
    st.lists(ROW, max_size=6).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(WHOLE, min_size=1, max_size=6).map(lambda rows: json.dumps(rows).encode()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(JSON | ROW, min_size=1, max_size=6), block=st.sampled_from([1, 3, 7, 50]), ascii_only=st.booleans()
)
def test_an_array_reads_the_same_wherever_its_blocks_are_cut(tmp_path, rows, block, ascii_only):
    text = json.dumps(rows, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    assume(b"\xed" not in text)  # a lone surrogate is no UTF-8
    (tmp_path / "a.json").write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sftmix.data.rows.CHUNK_BYTES", block)
        read = [row.fields for row in read_file(tmp_path / "a.json")]
    assert json.dumps(read) == json.dumps(rows)


NAMES = ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.json.gz", "a.csv.gz"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENT, name=st.sampled_from(NAMES), zipped=st.booleans(), block=st.sampled_from([1, 7, 2**20]))
def test_any_bytes_give_examples_or_one_line(compose, tmp_path, content, name, zipped, block):
    """Never a traceback, and no row is lost: rows read = rows with examples + rows dropped with a reason."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, mtime=0) if zipped and name.endswith(".gz") else content)
    data = replace(own(compose), path=str(path))
    artifact = Artifact(tmp_path, "examples", {"name": name, "content": content.hex(), "zipped": zipped})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sftmix.data.rows.CHUNK_BYTES", block)
        try:
            make_examples(artifact, data, show_progress=False)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - it may be raised or not
            return
    reading, found = read_json(artifact.folder / READING), Examples(map_shards(artifact.folder, EXAMPLES))
    assert all(e.response.strip() and e.instruction.strip() for e in found if e.is_whole)
    assert sum(reading["rows"].values()) == len({e.row for e in found}) + reading["census"]["rows"]["dropped"]
    visible(describe_reading(data, reading)).encode()


@cache
def own(compose):
    """Return the data config of a local file."""
    return compose("data=own", "data.path=a.json").data
