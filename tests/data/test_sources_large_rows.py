"""Rows that are larger than the bound are skipped in bounded memory; smaller ones are read as before."""

import csv
import gzip
import io
import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftmix.data.census import TOO_LARGE
from sftmix.data.sources import read_file
from sftmix.errors import InputError

ROWS = [{"instruction": "A", "output": "B"}, {"instruction": "Ü", "output": "D\nE"}]


def read(path):
    return list(read_file(path))


def test_a_row_of_ten_megabytes_is_a_row(tmp_path):
    row = {"instruction": "A", "output": "b " * 5_000_000}
    both = [json.dumps(row), json.dumps(ROWS[0])]
    for name, text in (("a.json", f"[{both[0]}, {both[1]}]"), ("b.jsonl", "\n".join(both))):
        (tmp_path / name).write_text(text)
        assert [r.fields for r in read(tmp_path / name)] == [row, ROWS[0]]


LIMIT, LARGE = 2**20, 2**23  # a row may have 1 MiB, the large one has 8
SMALL = {"instruction": "A", "output": "B"}


def large_file(path, kind):
    """A file of a small row, a large one and a small one, where the format has rows at all."""
    text = b"x" * LARGE
    one, large = json.dumps(SMALL).encode(), b'{"instruction": "A", "output": "' + text + b'"}'
    nested = b"[" + b'{"a": ["\\"]", 1, null]}, ' * (LARGE // 150) + b"0]"
    content = {
        "a.jsonl": b"\n".join([one, large, one]),
        "a.jsonl.gz": b"\n".join([one, large, one]),
        "blanks.jsonl.gz": b"\n".join([one, b" " * LARGE, one]),
        "bytes.jsonl": b"\n".join([one, b"\xff" * LARGE, one]),
        "a.json": b"[" + b", ".join([one, large, one]) + b"]",
        "a.json.gz": b"[" + b", ".join([one, large, one]) + b"]",
        "nested.json.gz": b"[" + b", ".join([one, nested, one]) + b"]",
        "escapes.json.gz": b"[" + b",".join([one, b'"' + b"\\\\" * LARGE + b'"', one]) + b"]",
        "a.csv": b'instruction,output\nA,B\nA,"' + (b'x""y,' * 100 + b"\n") * (LARGE // 501) + b'"\nA,B\n',
        "a.csv.gz": b"instruction,output\nA,B\nA," + text + b"\nA,B\n",
        "a.tsv.gz": b"instruction\toutput\r\nA\tB\r\nA\t" + text + b"\r\nA\tB\r\n",
    }[kind]
    path.write_bytes(gzip.compress(content, 1, mtime=0) if kind.endswith(".gz") else content)


@pytest.mark.parametrize(
    "kind",
    ["a.jsonl", "a.jsonl.gz", "blanks.jsonl.gz", "bytes.jsonl", "a.json", "a.json.gz", "nested.json.gz",
     "escapes.json.gz", "a.csv", "a.csv.gz", "a.tsv.gz"],
)  # fmt: skip
def test_a_row_that_is_too_large_is_skipped_in_bounded_memory(tmp_path, kind):
    large_file(tmp_path / kind, kind)
    tracemalloc.start()
    rows = list(read_file(tmp_path / kind, LIMIT))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.fields for row in rows] == [SMALL, None, SMALL]
    assert [(row.problem, row.reason) for row in rows if row.fields is None] == [("more than 1 MiB", TOO_LARGE)]
    assert [row.number for row in rows] == [1, 2, 3]
    assert peak < (40 if kind == "nested.json.gz" else 8) * LIMIT  # objects in memory are some 20 times their text


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_a_row_may_be_as_large_as_the_bound_in_bytes_and_no_larger(tmp_path, name):
    """The limit counts bytes of the row in the file, also for characters of two bytes."""
    for text in ("x" * 4000, "ü" * 2000):
        row = f'{{"instruction": "A", "output": "{text}"}}' if "json" in name else f"A,{text}"
        size = len(row.encode())
        content = {"a.csv": f"instruction,output\n{row}\n", "a.json": f"[{row}]"}.get(name, f"{row}\n")
        data = content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        assert [row.fields["output"] for row in read_file(tmp_path / name, size)] == [text]
        assert [row.reason for row in read_file(tmp_path / name, size - 1)] == [TOO_LARGE]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"x" * 9000, r"a\.csv: the first line has over 0\.00391 MiB, expected a header"),
        ("b.csv", b'a,"' + b"x\n" * 5000 + b'"\n1,2\n', r"b\.csv, line 1: the header has over 0\.00391 MiB"),
        ("a.json", b"[" + b"1" * 9000, r"a\.json, line 1: not JSON \("),
        ("b.json", b'["' + b"1" * 9000, r"b\.json, line 1: not JSON \(the file ends inside the array"),
        (
            "c.json",
            b"[" + b'{"a": "' + b"1" * 9000 + b'"} 7]',
            r"c\.json, line 1: not JSON \(expected , or \] after a row",
        ),
        ("latin.jsonl", b'{"a": 1}\n' * 5000 + b'"\xe9"' + b"\n1" * 9000, r"latin\.jsonl, line 5001: byte 0xe9 is not"),
        ("cut.jsonl", "é".encode()[:1], r"cut\.jsonl, line 1: byte 0xc3 is not UTF-8"),
    ],
)
def test_a_bad_file_of_large_rows_is_one_line(tmp_path, monkeypatch, name, content, says):
    monkeypatch.setattr("sftmix.data.rows.CHUNK_BYTES", 1000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        list(read_file(tmp_path / name, 4096))


ROW_TEXT = st.text(st.sampled_from('ab"\n\r,;é'), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(ROW_TEXT, ROW_TEXT), min_size=1, max_size=6),
    name=st.sampled_from(["a.csv", "a.json"]),
    limit=st.integers(20, 40),
    block=st.sampled_from([1, 3, 2**20]),
)
def test_rows_around_those_that_are_too_large_are_read_as_without_a_bound(tmp_path, rows, name, limit, block):
    if name == "a.csv":
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows([["instruction", "output"], *rows])
        content = buffer.getvalue()
    else:
        content = json.dumps([dict(zip(("instruction", "output"), row, strict=True)) for row in rows])
    (tmp_path / name).write_bytes(content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sftmix.data.rows.CHUNK_BYTES", block)
        whole, bounded = read(tmp_path / name), list(read_file(tmp_path / name, limit))
    assert len(bounded) == len(whole)
    assert all(b.problem if b.fields is None else b == w for b, w in zip(bounded, whole, strict=True))
