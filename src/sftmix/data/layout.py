"""Divide a step into micro-batches, and lay sequences out in tensors: padded, in groups of similar length, or packed.

A layout changes neither which examples are paired nor what is computed for them. Sequences are padded on the right,
where no causal model looks, so that no attention mask is needed.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sftmix.data.pairing import Step
from sftmix.data.shards import EncodedExamples

LAYOUTS = ("padded", "grouped", "packed")
GROUP_COST = 160  # cost of one more forward pass of the body, in tokens


class BodyInput(NamedTuple):
    """Input of one forward pass of the body.

    Attributes:
        position_ids: Positions that restart at 0 with each sequence of a packed batch. None if each line of the batch
            holds one sequence.
        boundaries: Index of the first token of each packed sequence, and the number of tokens, in int32 as flash
            attention takes them. Without them transformers would ask the device for them in every layer.
        longest: Length of the longest packed sequence.
    """

    input_ids: Int[Tensor, "batch seq"]
    position_ids: Int[Tensor, "batch seq"] | None = None
    boundaries: Int[Tensor, " boundary"] | None = None
    longest: int | None = None


def lay_out(
    sequences: Sequence[Sequence[int]], layout: str, pad_token_id: int
) -> tuple[tuple[BodyInput, ...], list[int]]:
    """Return the inputs of the body, and the index of each sequence's first token in the flattened inputs.

    Args:
        sequences: Token ids. At least one sequence, none of them empty.

    Raises:
        ValueError: If the layout is unknown.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout}: expected {', '.join(LAYOUTS)}")
    lengths = [len(ids) for ids in sequences]
    if layout == "packed":
        tokens = torch.tensor([token for ids in sequences for token in ids], dtype=torch.long)
        positions = torch.cat([torch.arange(length) for length in lengths])
        boundaries = [0, *accumulate(lengths)]
        cu_seq_lens = torch.tensor(boundaries, dtype=torch.int32)
        return (BodyInput(tokens[None], positions[None], cu_seq_lens, max(lengths)),), boundaries[:-1]
    groups = group_by_length(lengths) if layout == "grouped" else [list(range(len(lengths)))]
    inputs, starts, begin = [], [0] * len(lengths), 0
    for group in groups:
        width = max(lengths[i] for i in group)
        input_ids = torch.full((len(group), width), pad_token_id, dtype=torch.long)
        for line, i in enumerate(group):
            input_ids[line, : lengths[i]] = torch.tensor(sequences[i], dtype=torch.long)
            starts[i] = begin + line * width
        inputs.append(BodyInput(input_ids))
        begin += input_ids.numel()
    return tuple(inputs), starts


def group_by_length(lengths: Sequence[int], group_cost: int = GROUP_COST) -> list[list[int]]:
    """Return the indices of each group of sequences, the shortest first, for the lowest number of padded tokens.

    A group costs `group_cost` tokens more. Dynamic programming finds the best cut of the sequences sorted by length.
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
    """Group consecutive examples of a dialogue if the ids of each are a prefix of the ids of the next.

    Causal attention sees the same tokens before a position in the whole dialogue as in the single example. One forward
    pass of the last example of a group therefore scores the whole group. A group ends where the next example does not
    repeat the ids, because its template drops or alters the history, or because its oldest turns were dropped.
    """
    dialogues = encoded.column("dialogue").to_pylist()
    groups: list[list[int]] = []
    for i, dialogue in enumerate(dialogues):
        length = encoded.lengths[i - 1]
        is_longer = i > 0 and dialogue == dialogues[i - 1] and encoded.lengths[i] > length
        if is_longer and encoded[i].input_ids[:length] == encoded[i - 1].input_ids:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def split_into_microbatches(
    step: Step, lengths: Mapping[int, int], *, micro_batch_tokens: int, padded: bool, world_size: int = 1
) -> list[list[Step]]:
    """Return the micro-batches of each rank. Every rank has the same number, so some may be empty.

    A unit is a pair or an unpaired example; units are never divided. The ranks get about the same number of tokens:
    units are assigned from the largest to the smallest, each to the rank with the fewest tokens. The units of a rank,
    sorted by length, are then cut into the fewest micro-batches of about equal size that fit the budget.

    Args:
        lengths: Tokens of each example.
        micro_batch_tokens: Maximum number of tokens of a micro-batch. A unit that is longer is a micro-batch by itself.
        padded: Count the padding to the longest sequence of a micro-batch too.
    """
    pairs = zip(step.confident, step.unconfident, step.lam, strict=True)
    units = [Step((c,), (u,), (lam,)) for c, u, lam in pairs] + [Step(unpaired=(i,)) for i in step.unpaired]

    def tokens(unit: Step) -> int:
        return sum(lengths[i] for i in unit.examples)

    def longest(unit: Step) -> int:
        return max(lengths[i] for i in unit.examples)

    def fits(part: Sequence[Step]) -> bool:
        padded_tokens = sum(len(unit.examples) for unit in part) * max(map(longest, part))
        return len(part) == 1 or (padded_tokens if padded else sum(map(tokens, part))) <= micro_batch_tokens

    def cut(share: Sequence[Step], load: int, count: int) -> list[list[Step]]:
        """Cut the units of a rank into at most `count` consecutive parts of about equal numbers of tokens."""
        parts: dict[int, list[Step]] = {}
        before = 0
        for unit in share:
            parts.setdefault(count * (2 * before + tokens(unit)) // (2 * load), []).append(unit)
            before += tokens(unit)
        return list(parts.values())

    shares: list[list[Step]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for unit in sorted(units, key=tokens, reverse=True):
        rank = loads.index(min(loads))
        shares[rank].append(unit)
        loads[rank] += tokens(unit)
    micro_batches = []
    for share, load in zip(shares, loads, strict=True):
        share.sort(key=longest)
        count = max(1, -(-load // micro_batch_tokens))
        while not all(map(fits, parts := cut(share, load, count))):
            count += 1
        micro_batches.append([_join(part) for part in parts])
    most = max(1, *map(len, micro_batches))
    return [parts + [_join([])] * (most - len(parts)) for parts in micro_batches]


def _join(units: Sequence[Step]) -> Step:
    return Step(*(tuple(chain.from_iterable(values)) for values in zip(*units, strict=True))) if units else Step()
