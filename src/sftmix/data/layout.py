"""How sequences lie in the tensors that the body of a model runs on: padded, in groups of like length, or packed.

A layout changes neither which examples meet nor what is computed for them. Sequences are filled up on the right, where
no causal model looks, so that no attention mask is needed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LAYOUTS = ("padded", "grouped", "packed")
GROUP_COST = 160  # tokens: what one more forward of the body costs beside its own


class BodyInput(NamedTuple):
    """What one forward of the body takes.

    Attributes:
        input_ids: int64 `[batch seq]`.
        position_ids: int64 `[batch seq]` that restart at 0 with each sequence of a packed row; None where each line
            holds one sequence.
    """

    input_ids: Tensor
    position_ids: Tensor | None


def lay_out(
    sequences: Sequence[Sequence[int]], layout: str, pad_token_id: int
) -> tuple[tuple[BodyInput, ...], list[int]]:
    """The inputs of the body, and where each sequence begins in their flattened positions, one input after the other.

    Args:
        sequences: token ids; at least one, none of them empty.
        layout: padded, grouped or packed.
        pad_token_id: fills up shorter sequences; no loss and no attention reads it.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout}: expected {', '.join(LAYOUTS)}")
    lengths = [len(ids) for ids in sequences]
    if layout == "packed":
        row = torch.tensor([token for ids in sequences for token in ids], dtype=torch.long)
        positions = torch.cat([torch.arange(length) for length in lengths])
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return (BodyInput(row[None], positions[None]),), starts
    groups = group_by_length(lengths) if layout == "grouped" else [list(range(len(lengths)))]
    inputs, starts, begin = [], [0] * len(lengths), 0
    for group in groups:
        width = max(lengths[i] for i in group)
        input_ids = torch.full((len(group), width), pad_token_id, dtype=torch.long)
        for line, i in enumerate(group):
            input_ids[line, : lengths[i]] = torch.tensor(sequences[i], dtype=torch.long)
            starts[i] = begin + line * width
        inputs.append(BodyInput(input_ids, None))
        begin += input_ids.numel()
    return tuple(inputs), starts


def group_by_length(lengths: Sequence[int], group_cost: int = GROUP_COST) -> list[list[int]]:
    """Groups of sequences of like length that cost least, where a group costs its padded tokens and `group_cost`.

    The best cut of the sequences sorted by length, found by dynamic programming over their number.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    best, cut = [0], [0]
    for stop in range(1, len(order) + 1):
        longest = lengths[order[stop - 1]]
        costs = [best[start] + (stop - start) * longest + group_cost for start in range(stop)]
        best.append(min(costs))
        cut.append(costs.index(best[-1]))
    groups, stop = [], len(order)
    while stop:
        groups.append(order[cut[stop] : stop])
        stop = cut[stop]
    return groups[::-1]


def cut_by_tokens(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Batches of indices, shortest first, each of at most so many tokens with its padding (one example at least)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[i] > tokens:
            batches.append([])
        batches[-1].append(i)
    return batches
