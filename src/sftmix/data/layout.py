"""Lay sequences out in the tensors that the model body runs on: padded, in groups of similar length, or packed.

A layout changes neither which examples are paired nor what is computed for them. Sequences are padded on the right,
where no causal model looks, so that no attention mask is needed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sftmix.data.shards import EncodedExamples

LAYOUTS = ("padded", "grouped", "packed")
GROUP_COST = 160  # cost of one more forward pass of the body, in tokens


class BodyInput(NamedTuple):
    """Input of one forward pass of the body.

    Attributes:
        position_ids: Positions that restart at 0 with each sequence of a packed batch. None if each line of the batch
            holds one sequence.
    """

    input_ids: Int[Tensor, "batch seq"]
    position_ids: Int[Tensor, "batch seq"] | None


def lay_out(
    sequences: Sequence[Sequence[int]], layout: str, pad_token_id: int
) -> tuple[tuple[BodyInput, ...], list[int]]:
    """Return the inputs of the body, and the index of each sequence's first token in the flattened inputs.

    Args:
        sequences: Token ids. At least one sequence, none of them empty.
        pad_token_id: Token that fills up shorter sequences. Neither loss nor attention reads it.

    Raises:
        ValueError: If the layout is unknown.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout}: expected {', '.join(LAYOUTS)}")
    lengths = [len(ids) for ids in sequences]
    if layout == "packed":
        tokens = torch.tensor([token for ids in sequences for token in ids], dtype=torch.long)
        positions = torch.cat([torch.arange(length) for length in lengths])
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return (BodyInput(tokens[None], positions[None]),), starts
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
    """Group sequences of similar length at the lowest cost, where a group costs its padded tokens plus `group_cost`.

    The optimal cut of the sequences sorted by length is found by dynamic programming.

    Returns:
        Indices of the sequences of each group, the shortest first.
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
    """Return batches of indices, the shortest first, each of at most `tokens` tokens including padding.

    A sequence that is longer is a batch by itself.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[i] > tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def group_shared_prefixes(encoded: EncodedExamples) -> list[list[int]]:
    """Group consecutive examples of a dialogue of which each one's ids are a prefix of the next one's ids.

    Causal attention sees the same tokens before a position in the whole dialogue as in the single example. One forward
    pass of the last example of a group therefore scores the whole group. A group ends where the next example does not
    repeat the ids, because its template drops or alters the history, or because its oldest turns were dropped.

    Args:
        encoded: Examples. Those of one dialogue follow each other.
    """
    dialogues = encoded.column("dialogue").to_pylist()
    groups: list[list[int]] = []
    for i, dialogue in enumerate(dialogues):
        if i and dialogue == dialogues[i - 1] and _is_prefix(encoded[i - 1].input_ids, encoded[i].input_ids):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _is_prefix(prefix: Sequence[int], ids: Sequence[int]) -> bool:
    return len(ids) > len(prefix) and ids[: len(prefix)] == prefix
