"""Splits that replace the split by confidence in ablations: at random, by length, by group.

Each returns True for the examples that take the place of the confident subset. The order of the examples does not
count.
"""

import hashlib
from collections.abc import Sequence

import torch

from sftmix.functional.confidence import split_by_confidence


def random_subsets(ids: Sequence[str], seed: int) -> list[bool]:
    """Split into halves by the hash of seed and id. Of an odd number, the unconfident subset gets one more."""
    hashes = [hashlib.sha256(f"half {seed} {i}".encode()).digest() for i in ids]
    return _lower_half([int.from_bytes(digest[:8], "big") / 2**64 for digest in hashes], ids)


def subsets_by_length(num_response_tokens: Sequence[int], ids: Sequence[str]) -> list[bool]:
    """Split into halves by length in tokens: shorter responses count as confident. Ties are broken by id."""
    return _lower_half(num_response_tokens, ids)


def subsets_by_group(groups: Sequence[str], confident: str) -> list[bool]:
    """Split by group: examples of group `confident` count as confident. The subsets may differ in size."""
    return [group == confident for group in groups]


def _lower_half(values: Sequence[float], ids: Sequence[str]) -> list[bool]:
    """Return the half with the lowest values, by the rule that splits by confidence (Step 1)."""
    return split_by_confidence(-torch.tensor(values, dtype=torch.float64), ids).tolist()
