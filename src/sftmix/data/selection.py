"""Select the examples to train on (Table 7): the longest, the best rated, the examples of a list, or random ones."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sftmix.data.files import check_file
from sftmix.data.sources import read_file
from sftmix.errors import InputError
from sftmix.terminal import counted

NAMES = ("example_id", "id", "index", "alpaca_index")  # columns that name an example: by its id, or by its row
ONE_NAME = f"one of {', '.join(NAMES)}"
MOST_DIGITS = 15  # of the index of a row; an id that consists of digits has 16
SHOWN = 60  # characters of an entry that a message shows


def longest(num_response_tokens: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k examples with the most response tokens (Zhao et al., 2024); of equals, the earlier.

    Args:
        num_response_tokens: Response tokens under the target's tokenizer, `[example]`.

    Raises:
        InputError: If there are fewer than k examples.
    """
    _check_enough(len(num_response_tokens), k)
    return np.sort(np.argsort(-num_response_tokens.astype(np.int64), kind="stable")[:k])


def best(scores: np.ndarray, k: int | None, at_least: float | None) -> np.ndarray:
    """Return the indices of the k examples with the highest scores (of equals, the earlier), or of all that reach one.

    Args:
        scores: Scores, `[example]`; NaN if an example has none.
        k: Number of examples to choose. If None, all examples are chosen whose score is `at_least` or higher.

    Raises:
        InputError: If fewer than k examples have a score, or if no example reaches `at_least`.
    """
    known = np.flatnonzero(~np.isnan(scores))
    if k is not None:
        _check_enough(len(known), k)
        return np.sort(known[np.argsort(-scores[known], kind="stable")[:k]])
    chosen = known[scores[known] >= at_least]
    if not len(chosen):
        highest = f"the highest is {scores[known].max():g}" if len(known) else "no example has one"
        raise InputError(f"data.select.at_least={at_least}: no example has that score, {highest}")
    return chosen


def random_examples(ids: Sequence[str], k: int, seed: int, block: int = 0) -> np.ndarray:
    """Return the indices of k random examples, in the order of `ids`.

    The examples are ordered by the hash of seed and id. Blocks of different numbers have no example in common.

    Args:
        block: Which k examples of that order, counted from 0.

    Raises:
        InputError: If there are fewer examples.
    """
    _check_enough(len(ids), k)
    if (block + 1) * k > len(ids):
        raise InputError(
            f"data.select.block={block}: {counted(len(ids), 'example')} to select from have "
            f"{counted(len(ids) // k, 'block')} of data.select.k={k}, counted from 0"
        )
    keys = [hashlib.sha256(f"{seed} {i}".encode()).digest() for i in ids]
    ordered = sorted(range(len(ids)), key=keys.__getitem__)
    return np.sort(np.array(ordered[block * k : (block + 1) * k], dtype=np.int64))


def _check_enough(available: int, k: int) -> None:
    if available < k:
        raise InputError(
            f"data.select.k={k}: {counted(available, 'example')} to select from, set a lower one by data.select.k=..."
        )


class SelectionList:
    """Examples that a file lists, with their scores if it has any.

    The file holds indices of rows (counted from 0, as released lists do), example ids, or records with one of the two
    and a score. A list of numbers that is read as scores has one score for each row of the source.

    Attributes:
        by_row: Score by row, counted from 1; 1 if the file has no scores.
        num_in_order: Number of scores that belong to rows by their order only.

    Raises:
        InputError: If the file cannot be read, or holds anything else.
    """

    def __init__(self, path: Path, *, as_scores: bool) -> None:
        self.path = path
        self.by_row: dict[int, float] = {}
        self.by_id: dict[str, float] = {}
        self.num_in_order = 0
        check_file(path, "data.select.path")
        for row in read_file(path):
            entry, where = row.fields, row.where
            if row.problem:
                raise InputError(f"{where}: {row.problem}")
            given: Any = entry if as_scores else 1.0
            if isinstance(entry, Mapping):
                named = _named(next((entry[name] for name in NAMES if name in entry), None))
                given = entry.get("score") if as_scores else 1.0
            elif as_scores:
                named = self.num_in_order = row.number
            else:
                named = _named(entry)
            score = _number(given)
            if score is None:
                raise InputError(f"{where}: no score, expected a number, or a record with {ONE_NAME} and score")
            if named is None:
                raise InputError(
                    f"{where}: {_shown(entry)} names no example, expected a row counted from 0, an example id, or "
                    f"a record with {ONE_NAME}"
                )
            known: dict[Any, float] = self.by_row if isinstance(named, int) else self.by_id
            if known.setdefault(named, score) != score:
                raise InputError(f"{where}: {str(named)[:SHOWN]} has two scores, {known[named]:g} and {score:g}")

    def check_covers(self, num_rows: int) -> None:
        """Raise an InputError if scores in the order of the rows are more or fewer than the rows that were read."""
        if self.num_in_order and self.num_in_order != num_rows:
            raise InputError(
                f"{self.path}: {counted(self.num_in_order, 'score')} for {counted(num_rows, 'row')} that are read, "
                f"expected one score a row; records of index (or example_id) and score may name some rows only"
            )

    def scores(self, ids: Sequence[str], rows: Sequence[int], num_sources: int, num_held_out: int = 0) -> np.ndarray:
        """Return the score of each example; NaN for an example that is not in the file.

        Args:
            rows: Rows of the examples, counted from 1.
            num_held_out: Number of held-out examples that the file lists.

        Raises:
            InputError: If the file lists rows of several sources, or if none of its entries is an example.
        """
        if self.by_row and num_sources > 1:
            raise InputError(
                f"{self.path}: names rows, but the data set has {num_sources} sources: name examples by their ids"
            )
        scores = [self.by_id.get(i, self.by_row.get(row, np.nan)) for i, row in zip(ids, rows, strict=True)]
        found = np.array(scores, dtype=np.float64)
        if np.isnan(found).all():
            count = len(self.by_row) + len(self.by_id)
            raise InputError(
                f"{self.path}: all {num_held_out} examples that it names are held out, none is left to train on; "
                f"data.val_fraction=0 holds out none"
                if num_held_out
                else f"{self.path}: none of its {count} entries names an example of this data set"
            )
        return found

    def names(self, ids: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Return whether each example is in the file, bool `[example]`."""
        return np.array([i in self.by_id or row in self.by_row for i, row in zip(ids, rows, strict=True)], dtype=bool)

    def unknown(self, ids: Sequence[str], rows: Sequence[int]) -> list[str]:
        """Return the entries that are none of these examples: rows, counted from 0 as in the file, then ids."""
        lacking = [f"row {row - 1}" for row in sorted(self.by_row.keys() - set(rows))]
        return lacking + [i[:SHOWN].replace("\n", "\\n") for i in sorted(self.by_id.keys() - set(ids))]


def _number(value: Any) -> float | None:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _named(key: Any) -> int | str | None:
    """Return the row (counted from 1) or the id that an entry names, or None if it names neither."""
    if isinstance(key, str):
        text = key.strip()
        is_row = text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
        return int(text) + 1 if is_row else text or None
    is_row = isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 10**MOST_DIGITS
    return key + 1 if is_row else None


def _shown(entry: Any) -> str:
    try:
        return json.dumps(entry, default=str)[:SHOWN]
    except RecursionError:
        return type(entry).__name__
