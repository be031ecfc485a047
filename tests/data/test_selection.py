"""Selection of examples by length, by score, by a list and at random, and the errors of wrong files."""

import json
from datetime import datetime
from decimal import Decimal

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sftmix.data.selection import SelectionList, best, longest, random_examples
from sftmix.errors import InputError


def test_the_longest_are_those_with_the_most_tokens_and_of_equal_ones_the_earlier():
    assert longest(np.array([3, 9, 5, 9, 5, 1], dtype=np.int32), 3).tolist() == [1, 2, 3]


def test_the_best_reach_a_score_or_are_so_many():
    scores = np.array([4.5, np.nan, 5.0, 3.0, 4.5, 4.5])
    assert best(scores, None, 4.5).tolist() == [0, 2, 4, 5]
    assert best(scores, 2, None).tolist() == [0, 2]
    with pytest.raises(InputError, match=r"data\.select\.at_least=6: no example has that score, the highest is 5"):
        best(scores, None, 6)
    with pytest.raises(InputError, match=r"data\.select\.k=6: 5 examples to select"):
        best(scores, 6, None)


def test_the_random_part_is_of_the_seed_and_the_ids_whatever_their_order():
    ids = [f"{i:016x}" for i in range(1000)]
    chosen = {ids[k] for k in random_examples(ids, 100, 0)}
    assert len(chosen) == 100
    assert {ids[::-1][k] for k in random_examples(ids[::-1], 100, 0)} == chosen
    assert {ids[k] for k in random_examples(ids, 100, 1)} != chosen
    assert {ids[k] for k in random_examples(ids, 200, 0)} > chosen, "a larger part holds the smaller one"
    with pytest.raises(InputError, match=r"data\.select\.k=1001: 1,000 examples to select"):
        random_examples(ids, 1001, 0)


def test_blocks_of_random_examples_are_disjoint_and_together_the_larger_choice():
    ids = [f"{k:016x}" for k in range(1000)]
    blocks = [set(random_examples(ids, 250, 0, block).tolist()) for block in range(4)]
    assert set.union(*blocks) == set(range(1000))
    assert blocks[0] | blocks[1] == set(random_examples(ids, 500, 0).tolist())
    with pytest.raises(InputError, match=r"data.select.block=4: 1,000 examples .* have 4 blocks of data.select.k=250"):
        random_examples(ids, 250, 0, 4)


IDS = [f"{i:016x}" for i in range(5)]


def listed(tmp_path, content, as_scores=False, name="list.json"):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return SelectionList(tmp_path / name, as_scores=as_scores)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([1, 3], "a.json"),
        ("1\n3\n", "a.jsonl"),
        ([IDS[1], IDS[3]], "a.json"),
        ([{"alpaca_index": 1, "score": 3}, {"alpaca_index": 3, "score": 4}], "a.json"),
        (f"example_id,half\n{IDS[1]},x\n{IDS[3]},y\n", "a.csv"),
        ("index\n1\n3\n", "a.csv"),
    ],
)
def test_a_list_names_rows_counted_from_0_or_ids(tmp_path, content, name):
    found = listed(tmp_path, content, name=name).scores(IDS, [1, 2, 3, 4, 5], 1)
    assert np.flatnonzero(~np.isnan(found)).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ([4, 2.5, 5, 1, 3], "a.json"),
        ([{"index": i, "score": s} for i, s in enumerate([4, 2.5, 5, 1, 3])], "a.json"),
        ("example_id,score\n" + "".join(f"{i},{s}\n" for i, s in zip(IDS, [4, 2.5, 5, 1, 3], strict=True)), "a.csv"),
    ],
)
def test_scores_are_one_a_row_or_of_named_examples(tmp_path, content, name):
    found = listed(tmp_path, content, as_scores=True, name=name).scores(IDS, [1, 2, 3, 4, 5], 1)
    assert found.tolist() == [4, 2.5, 5, 1, 3]


@pytest.mark.parametrize(
    ("content", "as_scores", "says"),
    [
        ([1, "x", None], False, r"row 3: null names no example, expected a row counted from 0, an example id"),
        ([1, -1], False, r"row 2: -1 names no example"),
        ([True], False, "row 1: true names no example"),
        ([{"name": "x"}], False, "row 1: .* names no example"),
        ([1.5], False, "row 1: 1.5 names no example"),
        ([4, "high"], True, r"row 2: no score, expected a number"),
        ([{"index": 1}], True, "row 1: no score"),
        ([{"index": 1, "score": 4}, {"index": 1, "score": 5}], True, "row 2: 2 has two scores, 4 and 5"),
        ([{"index": 1, "score": 10**400}], True, "row 1: no score, expected a number"),
        ([{"index": 1, "score": "1e999"}], True, "row 1: no score, expected a number"),
        (["1", " "], False, 'row 2: " " names no example'),
        ([10**4000], False, "row 1: 1000.* names no example"),
    ],
)
def test_a_list_that_cannot_be_used_is_an_error_with_its_row(tmp_path, content, as_scores, says):
    with pytest.raises(InputError, match=says):
        listed(tmp_path, content, as_scores)


def test_a_line_of_a_list_that_has_more_fields_than_columns_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"list\.csv, line 3: 3 fields"):
        listed(tmp_path, "index,score\n0,2\n1,4,5\n", True, "list.csv")


@pytest.mark.parametrize("text", ["²", "٣", "1" * 5000, "1" * 16])
def test_digits_that_cannot_be_a_row_are_an_id(tmp_path, text):
    found = listed(tmp_path, ["1", text])
    assert (found.by_row, found.by_id) == ({2: 1.0}, {text: 1.0})
    assert found.unknown(IDS, [1, 2]) == [text[:60]]


KEY = st.sampled_from(
    [0, 3, -1, 10**15, 10**4000, 1.5, True, None, *IDS[:2], "3", " 3", "²", "", "1" * 5000, "\ud800", "two\nlines"]
)
SCORE = st.sampled_from([0, 4.5, -1, 10**400, True, None, "4.5", "1e999", "nan", "x", [], {}]) | st.floats()
ENTRY = (
    st.dictionaries(st.sampled_from(["example_id", "id", "index", "alpaca_index", "score"]), KEY | SCORE) | KEY | SCORE
)
LIST = st.lists(ENTRY, max_size=4)
FILE = st.one_of(
    LIST.map(lambda entries: ("list.json", json.dumps(entries))),
    LIST.map(lambda entries: ("list.jsonl", "\n".join(map(json.dumps, entries)))),
    st.text('013,;.\n"aé² ', max_size=20).map(lambda text: ("list.csv", f"index,score\n{text}")),
)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=FILE, as_scores=st.booleans())
def test_any_list_gives_scores_or_one_line(tmp_path, file, as_scores):
    name, content = file
    try:
        found = listed(tmp_path, content, as_scores, name)
        found.check_covers(5)
        assert all("\n" not in entry for entry in found.unknown(IDS, [1, 2, 3, 4, 5]))
        scores = found.scores(IDS, [1, 2, 3, 4, 5], 1)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may be raised or not
        assert len(str(error)) < 500  # noqa: PT017
    else:
        assert not np.isinf(scores).any()


@pytest.mark.parametrize("value", [datetime(2025, 1, 1), b"bytes", Decimal("1.5")])
def test_values_that_json_does_not_have_are_one_line(tmp_path, value):
    parquet.write_table(pyarrow.table({"index": [value], "score": [1.0]}), tmp_path / "list.parquet")
    with pytest.raises(InputError, match=r"row 1: .* names no example"):
        SelectionList(tmp_path / "list.parquet", as_scores=True)


def test_a_list_of_other_data_is_refused(tmp_path):
    with pytest.raises(InputError, match="none of its 2 entries names an example"):
        listed(tmp_path, ["ffffffffffffffff", "eeeeeeeeeeeeeeee"]).scores(IDS, [1, 2, 3, 4, 5], 1)
    with pytest.raises(InputError, match="names rows, but the data set has 2 sources"):
        listed(tmp_path, [1]).scores(IDS, [1, 2, 3, 4, 5], 2)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("claude_t45.alpaca_indices.json", 5305),
        ("random_9k.alpaca_indices.json", 9229),
        ("filtered_alpaca_1k_score.alpaca_indices.json", 1000),
        ("filtered_alpaca_1k_longest.alpaca_indices.json", 1000),
    ],
)
def test_released_lists_are_read(shared, name, number):
    found = SelectionList(shared / "data/selections" / name, as_scores=False)
    rows = list(range(1, 52003))
    scores = found.scores([f"{i:016x}" for i in rows], rows, 1)
    assert np.count_nonzero(~np.isnan(scores)) == number
