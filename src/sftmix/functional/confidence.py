"""Section 3.1 and Step 1 of section 3.3: perplexity, confidence over checkpoints, and the split at the median."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def sum_by_example(
    nll: Float[Tensor, " token"], example: Int[Tensor, " token"], num_examples: int
) -> Float[Tensor, " example"]:
    """Return the nll of each response in nats: the sum over its tokens, accumulated in float64."""
    total = torch.zeros(num_examples, dtype=torch.float64, device=nll.device)
    return total.index_add(0, example, nll.double())


def perplexity(
    nll: Float[Tensor, "*checkpoint example"], num_tokens: Int[Tensor, "*checkpoint example"]
) -> Float[Tensor, "*checkpoint example"]:
    """Return the perplexity of each response, exp(nll / num_tokens) (section 3.1).

    Args:
        nll: Sum of the negative log-likelihoods of the response tokens, in nats.
        num_tokens: Number of response tokens, including the end-of-turn token.

    Raises:
        ValueError: If an example has no response token.
    """
    if (num_tokens < 1).any():
        raise ValueError(f"perplexity of a response without tokens: {int((num_tokens < 1).sum())} of them")
    return (nll / num_tokens).exp()


def confidence(perplexity: Float[Tensor, "checkpoint example"]) -> Float[Tensor, " example"]:
    """Return Conf(Y | X) = -(1/C) sum_c Perp_c(Y | X), the negated mean perplexity over the C checkpoints."""
    return -perplexity.mean(dim=0)


def variability(perplexity: Float[Tensor, "checkpoint example"]) -> Float[Tensor, " example"]:
    """Return the population standard deviation of the perplexity over the C checkpoints (0 for C = 1)."""
    return perplexity.std(dim=0, correction=0)


def confidence_in_windows(
    perplexity: Float[Tensor, " example"], ids: Sequence[str], window: int
) -> Float[Tensor, " example"]:
    """Return the confidence of each example as a rank among the examples near it: 1 - (rank + 1/2) / size, in (0, 1).

    The rank counts from 0, the lowest perplexity of the window; equal perplexities are ordered by id. The median over
    all windows is 1/2, so `split_by_confidence` takes the more confident half of each window. If the size of a window
    is odd, its middle example has 1/2 exactly, and ids decide.

    Perplexities that were measured while the model was tuned fall from the first example to the last. Ranks within a
    window compare only perplexities under nearly the same weights.

    Args:
        perplexity: Perplexities in the order of their measurement.
        window: Least number of consecutive examples that are ranked together; fewer only if there are fewer examples.
            Windows have equal sizes, up to 1.
    """
    found = torch.empty(len(ids), dtype=torch.float64)
    values, number = perplexity.tolist(), max(1, len(ids) // window)
    for k in range(number):
        members = range(len(ids) * k // number, len(ids) * (k + 1) // number)
        for rank, i in enumerate(sorted(members, key=lambda i: (values[i], ids[i]))):
            found[i] = (len(members) - rank - 0.5) / len(members)
    return found


def split_by_confidence(confidence: Float[Tensor, " example"], ids: Sequence[str]) -> Bool[Tensor, " example"]:
    """Return whether each example is in the confident subset, the more confident half (Step 1).

    Equal confidences are ordered by example id, so the order of the examples does not matter. If the number of
    examples is odd, the unconfident subset has one more.

    Args:
        confidence: Higher is more confident.
        ids: Unique id of each example.

    Raises:
        ValueError: If the numbers of ids and of confidences differ, or if a confidence is NaN.
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


def split_known(ids: Sequence[str], confidence: Mapping[str, float]) -> list[bool | None]:
    """Return whether each example is in the confident half of those whose confidence is known; None for the others."""
    known = [i for i in ids if i in confidence]
    values = torch.tensor([confidence[i] for i in known], dtype=torch.float64)
    found = dict(zip(known, split_by_confidence(values, known).tolist(), strict=True))
    return [found.get(i) for i in ids]
