"""How linear a model is between two hidden states: what the Mixup term of section 3.3 asks of it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sftmix.functional.equations import LMHead, interpolate, logits, token_nll
from sftmix.functional.fused import tokens_per_chunk


@torch.no_grad()
def linearity_gap(
    confident: Float[Tensor, "mixed dim"],
    unconfident: Float[Tensor, "mixed dim"],
    head: LMHead,
    confident_labels: Int[Tensor, " mixed"],
    unconfident_labels: Int[Tensor, " mixed"],
    lams: Sequence[float],
    *,
    chunk_bytes: int | None = None,
) -> Float[Tensor, "lam mixed"]:
    """What mixing costs at each mixed position, in nats: above 0 where it costs more than its two ends.

    With NLL(y | Z) = -log sigma(Z W)_y, Z~ = lam Z_c + (1 - lam) Z_u and the mixed label lam Y_c + (1 - lam) Y_u of
    Step 2 of section 3.3:

        gap(lam) = lam NLL(y_c | Z~) + (1 - lam) NLL(y_u | Z~) - [lam NLL(y_c | Z_c) + (1 - lam) NLL(y_u | Z_u)]

    The first two terms are the Mixup loss. The gap is 0 at lam = 0 and lam = 1, and for a pair of equals. It is no
    distance to an optimum: a mixed label of two tokens has an entropy (`label_entropy`), below which no Mixup loss
    comes, so that a model that is sure of both ends has a gap of at least that.

    Args:
        confident: last hidden states Z_c of the confident responses at the mixed positions.
        unconfident: Z_u of their partners.
        head: the language-model head W.
        confident_labels: y_c, the token that each position of the confident responses predicts.
        unconfident_labels: y_u of their partners.
        lams: shares of the confident end, each 0 to 1.
        chunk_bytes: of a chunk's logits; None: as in training on this device.
    """
    size = tokens_per_chunk(head.weight, chunk_bytes)
    gaps = []
    for start in range(0, len(confident), size):
        z_c, z_u = (z[start : start + size] for z in (confident, unconfident))
        y_c, y_u = (y[start : start + size] for y in (confident_labels, unconfident_labels))
        nll_c, nll_u = token_nll(z_c, head, y_c), token_nll(z_u, head, y_u)
        of_chunk = []
        for lam in lams:
            mixed = logits(interpolate(z_c, z_u, z_c.new_full((len(z_c),), lam)), head).log_softmax(dim=-1)
            of_mixed = -(lam * _of_label(mixed, y_c) + (1 - lam) * _of_label(mixed, y_u))
            of_chunk.append(of_mixed - lam * nll_c - (1 - lam) * nll_u)
        gaps.append(torch.stack(of_chunk))
    return torch.cat(gaps, dim=1) if gaps else confident.new_empty(len(lams), 0)


def label_entropy(is_same: Bool[Tensor, " mixed"], lam: float) -> Float[Tensor, " mixed"]:
    """Nats below which the Mixup loss cannot come: those of the mixed label; none where both labels are one token."""
    entropy = -sum(p * math.log(p) for p in (lam, 1 - lam) if p > 0)
    return torch.where(is_same, 0.0, entropy)


def _of_label(logprobs: Float[Tensor, "mixed vocab"], labels: Int[Tensor, " mixed"]) -> Float[Tensor, " mixed"]:
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
