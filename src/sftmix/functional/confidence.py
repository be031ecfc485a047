"""Section 3.1 and Step 1 of section 3.3: confidence over checkpoints, and the split at its median."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def confidence(perplexity: Float[Tensor, "checkpoint example"]) -> Float[Tensor, " example"]:
    """Conf(Y | X) = -(1/C) sum_c Perp_c(Y | X): the negated mean perplexity over the C checkpoints (section 3.1)."""
    return -perplexity.mean(dim=0)


def variability(perplexity: Float[Tensor, "checkpoint example"]) -> Float[Tensor, " example"]:
    """Standard deviation of the perplexity over the C checkpoints (of the population: zero for C = 1)."""
    return perplexity.std(dim=0, correction=0)


def split_by_confidence(confidence: Float[Tensor, " example"], ids: Sequence[str]) -> Bool[Tensor, " example"]:
    """True for the more confident half of the examples (Step 1).

    Equal confidences are ordered by example id, so that the order of the rows never matters. Of an odd number the
    unconfident half gets one more.

    Args:
        confidence: higher is more confident.
        ids: one unique id an example.

    Raises:
        ValueError: another number of ids than of confidences, or a confidence that is not a number.
    """
    if len(ids) != len(confidence):
        raise ValueError(f"{len(confidence)} confidences for {len(ids)} ids")
    if confidence.isnan().any():
        raise ValueError(f"{int(confidence.isnan().sum())} confidences are not numbers")
    values = confidence.tolist()
    order = sorted(range(len(ids)), key=lambda i: (-values[i], ids[i]))
    is_confident = torch.zeros(len(ids), dtype=torch.bool)
    is_confident[order[: len(ids) // 2]] = True
    return is_confident
