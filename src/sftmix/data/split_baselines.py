"""What may stand in the place of the split by confidence: is it confidence that matters?

Each gives True for the examples that play the confident part. Nothing depends on the order of the examples.
"""

import hashlib
from collections.abc import Sequence

import torch

from sftmix.functional.confidence import split_by_confidence


def halves_at_random(ids: Sequence[str], seed: int) -> list[bool]:
    """Halves by the hash of seed and id; of an odd number the unconfident part gets one more."""
    hashes = [hashlib.sha256(f"half {seed} {i}".encode()).digest() for i in ids]
    return _first_half([int.from_bytes(digest[:8], "big") / 2**64 for digest in hashes], ids)


def halves_by_length(num_response_tokens: Sequence[int], ids: Sequence[str]) -> list[bool]:
    """The half with the shorter responses plays the confident part; equal lengths go by id.

    Args:
        num_response_tokens: of each example, under the target's tokenizer.
        ids: one unique id an example.
    """
    return _first_half(num_response_tokens, ids)


def halves_by_group(groups: Sequence[str], confident: str) -> list[bool]:
    """The examples of one group play the confident part, all others the unconfident one: the sizes may differ."""
    return [group == confident for group in groups]


def _first_half(values: Sequence[float], ids: Sequence[str]) -> list[bool]:
    """The half of the lowest values: Step 1 with another figure in the place of confidence."""
    return split_by_confidence(-torch.tensor(values, dtype=torch.float64), ids).tolist()
