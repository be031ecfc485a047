"""Which examples to train on (Table 7): the longest, the best rated, a released list, or a random part."""

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

ID_COLUMNS = ("example_id", "id")
ROW_COLUMNS = ("index", "alpaca_index")
MOST_DIGITS = 15  # of a row's number; an id of digits alone has 16
SHOWN = 60  # characters of an entry


def longest(num_response_tokens: np.ndarray, k: int) -> np.ndarray:
    """The k examples with the most response tokens (Zhao et al., 2024); of equal ones the earlier.

    Args:
        num_response_tokens: `[example]`, under the target's tokenizer.
        k: how many.

    Raises:
        InputError: there are fewer.
    """
    _check_enough(len(num_response_tokens), k)
    return np.sort(np.argsort(-num_response_tokens.astype(np.int64), kind="stable")[:k])


def best(scores: np.ndarray, k: int | None, at_least: float | None) -> np.ndarray:
    """The k examples of the highest score, of equal ones the earlier, or all that reach a score.

    Args:
        scores: `[example]`; not a number where an example has none.
        k: how many, or None.
        at_least: the score to reach, or None.

    Raises:
        InputError: fewer than k have a score, or none reaches it.
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


def random_part(ids: Sequence[str], k: int, seed: int) -> np.ndarray:
    """A number k of examples by the hash of seed and id: the same ones in any order of the data.

    Raises:
        InputError: there are fewer.
    """
    _check_enough(len(ids), k)
    keys = [hashlib.sha256(f"{seed} {i}".encode()).digest() for i in ids]
    return np.sort(np.array(sorted(range(len(ids)), key=keys.__getitem__)[:k], dtype=np.int64))


def _check_enough(there: int, k: int) -> None:
    if there < k:
        raise InputError(
            f"data.select.k={k}: {counted(there, 'example')} to select from, set a lower one by data.select.k=..."
        )


class Listed:
    """What a file says of examples: which are listed, and their scores where it has any.

    The file holds numbers of rows (counted from 0, as released lists count), example ids, or records with one of the
    two and a score; a bare list of numbers asked for as scores has one a row of the source.

    Attributes:
        path: the file.
        by_row: score (1 where there is none) by the row's number, counted from 1.
        by_id: the same by example id.
        num_in_order: scores that stand for rows by their order alone.
    """

    def __init__(self, path: Path, *, as_scores: bool) -> None:
        """Read the file.

        Raises:
            InputError: it cannot be read, or holds something else.
        """
        self.path = path
        self.by_row: dict[int, float] = {}
        self.by_id: dict[str, float] = {}
        self.num_in_order = 0
        check_file(path, "data.select.path")
        for row in read_file(path):
            if row.problem:
                raise InputError(f"{row.where}: {row.problem}")
            self._take(row.fields, row.number, row.where, as_scores)

    def _take(self, entry: Any, number: int, where: str, as_scores: bool) -> None:
        given: Any = 1.0
        if isinstance(entry, Mapping):
            key = next((entry[name] for name in (*ID_COLUMNS, *ROW_COLUMNS) if name in entry), None)
            if as_scores:
                given = entry.get("score")
        elif as_scores:
            key, given = number - 1, entry
            self.num_in_order = number
        else:
            key = entry
        score, named = _number(given), _named(key)
        if score is None:
            raise InputError(f"{where}: no score, expected a number, or a record with {_names()} and score")
        if named is None:
            raise InputError(
                f"{where}: {_shown(entry)} names no example, expected a row counted from 0, an example id, or "
                f"a record with {_names()}"
            )
        if isinstance(named, int):
            self._put(self.by_row, named + 1, score, where)
        else:
            self._put(self.by_id, named, score, where)

    def _put(self, known: dict[Any, float], key: Any, score: float, where: str) -> None:
        if known.setdefault(key, score) != score:
            raise InputError(f"{where}: {str(key)[:SHOWN]} has two scores, {known[key]:g} and {score:g}")

    def __len__(self) -> int:
        """Entries."""
        return len(self.by_row) + len(self.by_id)

    def check_covers(self, num_rows: int) -> None:
        """Refuse a bare list of scores whose number is not that of the rows.

        Args:
            num_rows: rows of the source that were read.

        Raises:
            InputError: There are more or fewer scores.
        """
        if self.num_in_order and self.num_in_order != num_rows:
            raise InputError(
                f"{self.path}: {counted(self.num_in_order, 'score')} for {counted(num_rows, 'row')} that are read, "
                f"expected one score a row; records of index (or example_id) and score may name some rows only"
            )

    def scores(self, ids: Sequence[str], rows: Sequence[int], num_sources: int, num_held_out: int = 0) -> np.ndarray:
        """The score of each example; not a number where the file does not name it.

        Args:
            ids: of the examples.
            rows: of the examples, counted from 1.
            num_sources: sources of the data set.
            num_held_out: examples that the file names and that are not among these.

        Raises:
            InputError: rows are named in a data set of several sources, or nothing in the file names an example.
        """
        if self.by_row and num_sources > 1:
            raise InputError(
                f"{self.path}: names rows, but the data set has {num_sources} sources: name examples by their ids"
            )
        found = np.array(
            [self.by_id.get(i, self.by_row.get(row, np.nan)) for i, row in zip(ids, rows, strict=True)],
            dtype=np.float64,
        )
        if np.isnan(found).all() and num_held_out:
            raise InputError(
                f"{self.path}: all {num_held_out} examples that it names are held out, none is left to train on; "
                f"data.val_fraction=0 holds out none"
            )
        if np.isnan(found).all():
            raise InputError(f"{self.path}: none of its {len(self)} entries names an example of this data set")
        return found

    def names(self, ids: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """Which of these examples the file names, bool `[example]`."""
        return np.array([i in self.by_id or row in self.by_row for i, row in zip(ids, rows, strict=True)], dtype=bool)

    def unknown(self, ids: Sequence[str], rows: Sequence[int]) -> list[str]:
        """Entries that name none of these examples: rows counted from 0, as in the file, then ids."""
        lacking = [f"row {row - 1}" for row in sorted(self.by_row.keys() - set(rows))]
        return lacking + [i[:SHOWN].replace("\n", "\\n") for i in sorted(self.by_id.keys() - set(ids))]


def _number(value: Any) -> float | None:
    """A score as a finite number; None where it is none."""
    try:
        number = None if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _named(key: Any) -> int | str | None:
    """The row, counted from 0, or the id that an entry names; None where it names none."""
    if isinstance(key, str):
        text = key.strip()
        is_row = text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS
        return int(text) if is_row else text or None
    is_row = isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 10**MOST_DIGITS
    return key if is_row else None


def _shown(entry: Any) -> str:
    """The beginning of an entry, for a line."""
    try:
        return json.dumps(entry, default=str)[:SHOWN]
    except RecursionError:
        return type(entry).__name__


def _names() -> str:
    return f"one of {', '.join((*ID_COLUMNS, *ROW_COLUMNS))}"
