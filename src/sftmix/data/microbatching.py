"""A step's share for each rank, and its cut into micro-batches: whole pairs together, filled to a token budget."""

from collections.abc import Mapping, Sequence

from sftmix.data.pairing import Step


def split_into_microbatches(
    step: Step, lengths: Mapping[int, int], *, micro_batch_tokens: int, padded: bool, world_size: int = 1
) -> list[list[Step]]:
    """The micro-batches of each rank, each a part of the step; every rank has as many, some of them empty.

    Pairs, and examples without a partner, go to ranks so that their token counts balance: the largest first, each to
    the rank that has the fewest. A rank's share is cut in the order of length into micro-batches of about equal token
    counts, as few as keep within the budget.

    Args:
        step: examples by their index.
        lengths: tokens of each of them.
        micro_batch_tokens: the most that a micro-batch holds, unless one pair alone is larger.
        padded: count the padding to the longest sequence of a micro-batch too.
        world_size: number of ranks.
    """
    pairs = zip(step.confident, step.unconfident, step.lam, strict=True)
    units = [Step((c,), (u,), (lam,), ()) for c, u, lam in pairs] + [Step((), (), (), (i,)) for i in step.singles]

    def tokens(unit: Step) -> int:
        return sum(lengths[i] for i in unit.examples)

    def longest(unit: Step) -> int:
        return max(lengths[i] for i in unit.examples)

    def fits(part: Sequence[Step]) -> bool:
        padding_too = sum(len(unit.examples) for unit in part) * max(map(longest, part))
        return len(part) == 1 or (padding_too if padded else sum(map(tokens, part))) <= micro_batch_tokens

    shares: list[list[Step]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for unit in sorted(units, key=tokens, reverse=True):
        rank = loads.index(min(loads))
        shares[rank].append(unit)
        loads[rank] += tokens(unit)
    cuts = []
    for share, load in zip(shares, loads, strict=True):
        share.sort(key=longest)
        number = max(1, -(-load // micro_batch_tokens))
        while not all(map(fits, parts := _cut(share, [tokens(unit) for unit in share], number))):
            number += 1
        cuts.append([_join(part) for part in parts])
    most = max(1, *map(len, cuts))
    return [parts + [_join([])] * (most - len(parts)) for parts in cuts]


def _cut(units: Sequence[Step], tokens: Sequence[int], number: int) -> list[list[Step]]:
    """Consecutive parts of about equal token counts, at most so many and none of them empty."""
    parts: dict[int, list[Step]] = {}
    total, before = sum(tokens), 0
    for unit, own in zip(units, tokens, strict=True):
        parts.setdefault(number * (2 * before + own) // (2 * total), []).append(unit)
        before += own
    return list(parts.values())


def _join(units: Sequence[Step]) -> Step:
    return Step(
        tuple(i for unit in units for i in unit.confident),
        tuple(i for unit in units for i in unit.unconfident),
        tuple(lam for unit in units for lam in unit.lam),
        tuple(i for unit in units for i in unit.singles),
    )
