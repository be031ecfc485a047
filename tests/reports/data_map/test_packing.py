"""Arrays and texts as a page unpacks them."""

import base64
import gzip

import numpy as np
import pytest

from sftmix.reports.data_map import packing
from sftmix.reports.data_map.packing import MISSING, codes_of, compress, pack_arrays, pack_texts

NUMBERS = {"f4": np.float32, "u1": np.uint8, "u2": np.uint16, "u4": np.uint32}


def unpacked_arrays(packed):
    found, start = {}, 0
    for name, kind, length in packed.layout:
        array = np.frombuffer(packed.content, NUMBERS[kind], length, start)
        found[name], start = array, start + array.nbytes
    assert start == len(packed.content)
    return found


def unpacked_texts(content, num_columns, num_examples):
    raw = gzip.decompress(base64.b64decode(content))
    lengths = np.frombuffer(raw, "<u4", num_columns * num_examples)
    texts, start = [], lengths.nbytes
    for length in lengths:
        texts.append(None if length == MISSING else raw[start : start + length].decode())
        start += 0 if length == MISSING else int(length)
    assert start == len(raw)
    return [texts[c * num_examples : (c + 1) * num_examples] for c in range(num_columns)]


def test_arrays_come_back_and_tables_are_written_column_by_column():
    table = np.array([[1.0, 2.0], [np.inf, np.nan], [5.0, 6.0]], np.float32)
    found = unpacked_arrays(pack_arrays({"codes": np.array([3, 0, 1], np.uint8), "table": table}))
    assert found["codes"].tolist() == [3, 0, 1]
    np.testing.assert_array_equal(found["table"], [1, np.inf, 5, 2, np.nan, 6])


def test_texts_come_back_whole():
    columns = (["a1", "b2"], ["</script> \u202e\u05d0 ", ""], [None, "x" * 100_000])
    packed = pack_texts(columns, 10_000)
    assert unpacked_texts(packed.content, 3, 2) == [list(column) for column in columns]
    assert packed.limit is None
    assert not packed.is_shortened.any()


def test_texts_over_the_budget_are_shortened_until_they_fit(monkeypatch):
    generator = np.random.default_rng(0)
    texts = ["".join(map(chr, generator.integers(33, 127, 600))) for _ in range(40)] + ["short", None]
    ids = [f"{k:016x}" for k in range(42)]
    for sampled in (4000, 10):  # with and without an estimate from a sample
        monkeypatch.setattr(packing, "SAMPLED", sampled)
        packed = pack_texts((ids, ["q"] * 42, texts), 12_000)
        assert len(packed.content) <= 12_000
        assert packed.limit == 250
        found = unpacked_texts(packed.content, 3, 42)
        assert found[0] == ids
        assert found[2] == [text and text[:250] for text in texts]
        assert packed.is_shortened.tolist() == [True] * 40 + [False] * 2
        assert len(packing._pack((ids, ["q"] * 42, texts), 500)) > 12_000  # not shorter than necessary


def test_a_budget_that_nothing_fits_gives_the_shortest_texts():
    packed = pack_texts((["i"], ["q" * 99], ["r" * 99]), 1)
    assert unpacked_texts(packed.content, 3, 1) == [["i"], ["q" * 30], ["r" * 30]]


@pytest.mark.parametrize(("distinct", "kind"), [(3, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_codes_name_each_value_and_the_most_frequent_is_first(distinct, kind):
    values = [str(k) for k in range(distinct)] + ["1"]
    names, codes = codes_of(values)
    assert names[0] == "1"
    assert codes.dtype == kind
    assert [names[code] for code in codes[:1000]] == values[:1000]


def test_equal_content_is_compressed_equally():
    assert compress(b"abc" * 100) == compress(b"abc" * 100)
