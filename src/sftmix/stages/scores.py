"""Scores of the examples: from the nll of each response under each checkpoint to the confidence of each example."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from sftmix.errors import InputError
from sftmix.functional.confidence import confidence, perplexity, variability
from sftmix.terminal import one_line

INTEGERS = {"integers": pa.types.is_integer}
# Columns of a confidence file, and the types that each of them may have.
COLUMN_TYPES: dict[str, dict[str, Callable[[pa.DataType], bool]]] = {
    "example_id": {"text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)},
    "checkpoint": INTEGERS,
    "num_tokens": INTEGERS,
    "nll": {"numbers": pa.types.is_floating, **INTEGERS},
}


def confidence_of(scores: pa.Table, use: int | Sequence[int] | None) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Return ids, confidence and variability of the examples that every used checkpoint has scored.

    Args:
        scores: Table of columns `example_id, checkpoint, num_tokens, nll`.
        use: Which checkpoints are used: None (all), k (the last k), or a list of their numbers.

    Raises:
        ValueError: If a cell is empty, or a perplexity cannot be computed.
    """
    for name in scores.column_names:
        if scores[name].null_count:
            raise ValueError(f"column {name} has {scores[name].null_count} empty cells")
    coded = scores["example_id"].combine_chunks().dictionary_encode()
    example = coded.indices.to_numpy()
    checkpoint, num_tokens, nll = (scores[name].to_numpy() for name in ("checkpoint", "num_tokens", "nll"))
    used = _used(np.unique(checkpoint), use)
    shape = (len(used), len(coded.dictionary))
    tokens_of, nll_of, is_scored = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, bool)
    for c, number in enumerate(used):
        here = checkpoint == number
        tokens_of[c, example[here]], nll_of[c, example[here]] = num_tokens[here], nll[here]
        is_scored[c, example[here]] = True
    by_all = np.flatnonzero(is_scored.all(axis=0))
    ids = coded.dictionary.take(by_all).to_pylist()
    perplexities = perplexity(torch.from_numpy(nll_of[:, by_all]), torch.from_numpy(tokens_of[:, by_all]))
    return ids, confidence(perplexities), variability(perplexities)


def check_scores(path: Path, scores: pa.Table, use: int | Sequence[int] | None) -> None:
    """Refuse scores that are not negative log-likelihoods of responses under checkpoints 1 to C.

    The arguments are those of `confidence_of`. Each used checkpoint must have scored every example. The message names
    the file and the first row that is wrong, counted from 1.
    """
    if not len(scores):
        raise InputError(f"{path}: no rows, expected one row for each example and checkpoint")
    for name, expected in COLUMN_TYPES.items():
        kind = scores[name].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_kind(kind) for is_kind in expected.values()):
            raise InputError(f"{path}: column {name} has the type {kind}, expected {' or '.join(expected)}")
        if scores[name].null_count:
            first = scores[name].is_null().to_numpy().argmax() + 1
            raise InputError(f"{path}: row {first} has no {name}; the column has {scores[name].null_count} empty cells")
    example, checkpoint, num_tokens, nll = (scores[name].to_numpy() for name in COLUMN_TYPES)

    def refuse(wrong: np.ndarray, name: str, expected: str) -> None:
        if wrong.any():
            row, count = int(wrong.argmax()), int(wrong.sum())
            value = scores[name][row].as_py()
            others = f", and {count - 1:,} more of {len(wrong):,} rows are wrong in this way" if count > 1 else ""
            raise InputError(
                f"{path}: row {row + 1} (example {one_line(example[row])}, checkpoint {checkpoint[row]}) has "
                f"{name}={value}{others}; expected {expected}"
            )

    positive = "the negative log-likelihood of the response in nats, a finite number of at least 0"
    refuse(~np.isfinite(nll), "nll", positive)
    refuse(nll < 0, "nll", f"{positive}: if the column holds log-likelihoods, negate it")
    refuse(num_tokens < 1, "num_tokens", "at least 1 token in each response")
    numbers = np.unique(checkpoint)
    wrong = ~np.isin(checkpoint, np.arange(1, len(numbers) + 1))
    refuse(wrong, "checkpoint", f"the {len(numbers)} checkpoints to be numbered from 1 to {len(numbers)} without a gap")
    codes = scores["example_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    cells = codes * (len(numbers) + 1) + checkpoint
    order = np.argsort(cells, kind="stable")
    again = np.flatnonzero(np.diff(cells[order]) == 0)
    if len(again):
        first, second = order[again[0]] + 1, order[again[0] + 1] + 1
        raise InputError(
            f"{path}: rows {first} and {second} both have example {one_line(example[first - 1])} under checkpoint "
            f"{checkpoint[first - 1]}, expected one row for each example and checkpoint ({len(again):,} rows repeat "
            f"an earlier one)"
        )
    used = _used(numbers, use)
    per_example = np.bincount(codes, weights=np.isin(checkpoint, used))
    refuse(
        per_example[codes] < len(used),
        "example_id",
        f"every example to be scored under each of the {len(used)} checkpoints that count",
    )


def _used(numbers: np.ndarray, use: int | Sequence[int] | None) -> list[int]:
    """Return the numbers of the checkpoints that are used, in ascending order."""
    known: list[int] = numbers.tolist()
    return known if use is None else known[-use:] if isinstance(use, int) else sorted(use)
