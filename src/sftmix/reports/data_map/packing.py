"""Pack arrays and texts for a page: typed arrays and gzipped UTF-8 in base64, which the page unpacks."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

MISSING = 2**32 - 1  # Length of a text that is not there
LIMITS = (None, 8000, 4000, 2000, 1000, 500, 250, 120, 60, 30)  # Characters to which long texts are shortened
SAMPLED = 4000  # Examples from which the size of the packed texts is estimated
MARGIN = 1.05  # Texts whose estimated size is over the budget by more than this factor are not tried


class Packed(NamedTuple):
    """Arrays as bytes, and their names, types and lengths in the order of the bytes."""

    content: bytes
    layout: list[tuple[str, str, int]]


class PackedTexts(NamedTuple):
    """Gzipped texts in base64.

    Attributes:
        limit: Number of characters to which texts are shortened, or None if all are whole.
        is_shortened: Whether a text of the example is shortened, bool `[example]`.
    """

    content: str
    limit: int | None
    is_shortened: np.ndarray


def encoded(content: bytes) -> str:
    """Return bytes in base64."""
    return base64.b64encode(content).decode("ascii")


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> Packed:
    """Return arrays one after the other, little-endian. A two-dimensional array is written column by column."""
    parts, layout = list[bytes](), list[tuple[str, str, int]]()
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array.T).reshape(-1)
        parts.append(flat.astype(flat.dtype.newbyteorder("<")).tobytes())
        layout.append((name, f"{flat.dtype.kind}{flat.dtype.itemsize}", len(flat)))
    return Packed(b"".join(parts), layout)


def compress(content: bytes) -> str:
    """Return bytes gzipped, in base64. Equal bytes give an equal result."""
    return encoded(gzip.compress(content, 6, mtime=0))


def codes_of(values: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the distinct values, the most frequent first, and the index of each value among them."""
    names, index, counts = np.unique(np.array(values, dtype=object), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    size = np.uint8 if len(order) <= 2**8 else np.uint16 if len(order) <= 2**16 else np.uint32
    return [str(names[k]) for k in order], rank[index.reshape(-1)].astype(size)


def pack_texts(columns: Sequence[Sequence[str | None]], budget: int) -> PackedTexts:
    """Return columns of texts, gzipped: the length of each text in bytes, then all texts.

    If the result is larger than `budget` characters, the texts of all columns but the first are shortened.
    """
    for limit in _likely_limits(columns, budget):
        packed = _pack(columns, limit)
        if len(packed) <= budget or limit == LIMITS[-1]:
            break
    shortened = np.zeros(len(columns[0]), bool)
    if limit is not None:
        for column in columns[1:]:
            shortened |= np.array([text is not None and len(text) > limit for text in column], dtype=bool)
    return PackedTexts(packed, limit, shortened)


def _likely_limits(columns: Sequence[Sequence[str | None]], budget: int) -> Sequence[int | None]:
    """Return the limits from the first on that may fit, by the size of a sample of the examples."""
    stride = -(-len(columns[0]) // SAMPLED)
    if stride == 1:
        return LIMITS
    sample = [column[::stride] for column in columns]
    most = MARGIN * budget * len(sample[0]) / len(columns[0])
    first = next((k for k, limit in enumerate(LIMITS) if len(_pack(sample, limit)) <= most), len(LIMITS) - 1)
    return LIMITS[first:]


def _pack(columns: Sequence[Sequence[str | None]], limit: int | None) -> str:
    parts, lengths = list[bytes](), list[np.ndarray]()
    for number, column in enumerate(columns):
        cut = limit if number else None
        texts = [None if text is None else text[:cut].encode("utf-8", "replace") for text in column]
        lengths.append(np.array([MISSING if text is None else len(text) for text in texts], "<u4"))
        parts.append(b"".join(text for text in texts if text))
    return compress(b"".join([*(array.tobytes() for array in lengths), *parts]))
