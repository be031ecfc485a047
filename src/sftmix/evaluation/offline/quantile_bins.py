"""Held-out examples by the confidence of the reference: halves as the recipe splits, and terciles."""

from collections.abc import Mapping

HALVES = ("confident", "unconfident")
TERCILES = ("most confident third", "middle third", "least confident third")


def by_confidence(confidence: Mapping[str, float], names: tuple[str, ...]) -> dict[str, list[str]]:
    """Ids in parts of equal size, the most confident first.

    Equal confidences are ordered by id, so that nothing depends on the order of the examples. What cannot be dealt out
    evenly goes to the least confident parts, one each: two parts are the halves of Step 1 of section 3.3.

    Args:
        confidence: by id; higher is more confident.
        names: of the parts.
    """
    order = sorted(confidence, key=lambda i: (-confidence[i], i))
    bounds = [k * len(order) // len(names) for k in range(len(names) + 1)]
    return {name: order[bounds[k] : bounds[k + 1]] for k, name in enumerate(names)}
