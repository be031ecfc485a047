"""Divide a step among the ranks, and the part of each rank into micro-batches within a token budget."""

from collections.abc import Mapping, Sequence

from sftmix.data.pairing import Step


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
    units = [Step((c,), (u,), (lam,), ()) for c, u, lam in pairs] + [Step((), (), (), (i,)) for i in step.unpaired]

    def tokens(unit: Step) -> int:
        return sum(lengths[i] for i in unit.examples)

    def longest(unit: Step) -> int:
        return max(lengths[i] for i in unit.examples)

    def fits(part: Sequence[Step]) -> bool:
        padded_tokens = sum(len(unit.examples) for unit in part) * max(map(longest, part))
        return len(part) == 1 or (padded_tokens if padded else sum(map(tokens, part))) <= micro_batch_tokens

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
        while not all(map(fits, parts := _cut(share, [tokens(unit) for unit in share], count))):
            count += 1
        micro_batches.append([_join(part) for part in parts])
    most = max(1, *map(len, micro_batches))
    return [parts + [_join([])] * (most - len(parts)) for parts in micro_batches]


def _cut(units: Sequence[Step], tokens: Sequence[int], count: int) -> list[list[Step]]:
    """Cut units into at most `count` consecutive parts of about equal token counts, none of them empty."""
    parts: dict[int, list[Step]] = {}
    total, before = sum(tokens), 0
    for unit, own in zip(units, tokens, strict=True):
        parts.setdefault(count * (2 * before + own) // (2 * total), []).append(unit)
        before += own
    return list(parts.values())


def _join(units: Sequence[Step]) -> Step:
    return Step(
        tuple(i for unit in units for i in unit.confident),
        tuple(i for unit in units for i in unit.unconfident),
        tuple(lam for unit in units for lam in unit.lam),
        tuple(i for unit in units for i in unit.unpaired),
    )
