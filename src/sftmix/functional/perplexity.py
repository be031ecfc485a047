"""Section 3.1: how well a model predicts a response."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sftmix.functional.head import LMHead, logits


def token_nll(hidden: Float[Tensor, "row dim"], head: LMHead, labels: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Negative log-likelihood of each response token in nats: -log p(y_n | X, y_<n) (section 3.1)."""
    logprobs = logits(hidden, head).log_softmax(dim=-1)
    return -logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def sum_by_example(
    nll: Float[Tensor, " row"], example: Int[Tensor, " row"], num_examples: int
) -> Float[Tensor, " example"]:
    """Nats of each response: the sum of its tokens' negative log-likelihoods, accumulated in float64."""
    total = torch.zeros(num_examples, dtype=torch.float64, device=nll.device)
    return total.index_add(0, example, nll.double())


def perplexity(
    nll: Float[Tensor, "*checkpoint example"], num_tokens: Int[Tensor, "*checkpoint example"]
) -> Float[Tensor, "*checkpoint example"]:
    """Perplexity of each response under one checkpoint, exp(nats per response token) (section 3.1).

    Args:
        nll: nats of the whole response.
        num_tokens: tokens of the response, its end token included.

    Raises:
        ValueError: an example has no response token.
    """
    if (num_tokens < 1).any():
        raise ValueError(f"perplexity of a response without tokens: {int((num_tokens < 1).sum())} of them")
    return (nll / num_tokens).exp()
