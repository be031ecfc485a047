"""Steps 2 and 3 of section 3.3: interpolation of hidden states and labels, and the Mixup loss."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sftmix.functional.head import LMHead, logits


def interpolate(
    confident: Float[Tensor, "mixed width"],
    unconfident: Float[Tensor, "mixed width"],
    lam: Float[Tensor, " mixed"],
) -> Float[Tensor, "mixed width"]:
    """Lam * confident + (1 - lam) * unconfident, row by row: Z~_n and Y~_n of Step 2."""
    lam = lam.unsqueeze(-1)
    return lam * confident + (1 - lam) * unconfident


def mixed_labels(
    confident: Int[Tensor, " mixed"], unconfident: Int[Tensor, " mixed"], lam: Float[Tensor, " mixed"], vocab_size: int
) -> Float[Tensor, "mixed vocab"]:
    """Y~_n of Step 2: the interpolation of the two one-hot labels."""
    return interpolate(
        F.one_hot(confident, vocab_size).to(lam.dtype), F.one_hot(unconfident, vocab_size).to(lam.dtype), lam
    )


def mixup_cross_entropy(
    hidden: Float[Tensor, "mixed dim"], head: LMHead, labels: Float[Tensor, "mixed vocab"]
) -> Float[Tensor, " mixed"]:
    """H(Y~_n, sigma(Z~_n W)) of Step 3 in nats: cross-entropy of the mixed prediction against the mixed label."""
    return -(labels * logits(hidden, head).log_softmax(dim=-1)).sum(dim=-1)


def num_mixed_tokens(num_confident: int, num_unconfident: int) -> int:
    """N' = min(N_c, N_u): a pair is mixed over the positions that both responses have (Step 3)."""
    return min(num_confident, num_unconfident)
