"""Metrics of tokens: predictions, their calibration, and the linearity between two hidden states (section 3.3)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sftmix.functional.equations import LMHead, interpolate, logits, token_nll
from sftmix.functional.fused import tokens_per_chunk


class Prediction(NamedTuple):
    """The prediction of each token."""

    nll: Float[Tensor, " token"]  # Negative log-likelihood of the token, in nats
    top_probability: Float[Tensor, " token"]  # Probability of the most probable token, 0 to 1
    is_correct: Bool[Tensor, " token"]  # Whether the most probable token is the token
    # Sum over the vocabulary of (probability - 1[it is the token])^2, 0 to 2 (Brier, 1950)
    brier: Float[Tensor, " token"]
    entropy: Float[Tensor, " token"]  # Of the distribution, in nats


@torch.no_grad()
def predict(
    hidden: Float[Tensor, "token dim"], head: LMHead, labels: Int[Tensor, " token"], *, chunk_bytes: int | None = None
) -> Prediction:
    """Return the prediction of each token. Only the logits of one chunk are in memory at a time.

    Args:
        hidden: Last hidden states of the positions that predict the tokens.
        chunk_bytes: Size of a chunk's logits; None as in training on this device.
    """
    size = tokens_per_chunk(head.weight, chunk_bytes)
    starts = range(0, len(hidden), size)
    return joined([_predict(logits(hidden[i : i + size], head), labels[i : i + size]) for i in starts])


def joined(parts: list[Prediction]) -> Prediction:
    """Concatenate predictions."""
    if not parts:
        none = torch.empty(0)
        return Prediction(none, none, none.bool(), none, none)
    return Prediction(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _predict(raw: Float[Tensor, "token vocab"], labels: Int[Tensor, " token"]) -> Prediction:
    logprobs = raw.log_softmax(dim=-1)
    probabilities = logprobs.exp()
    top, most_probable = probabilities.max(dim=-1)
    nll = -logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    # sum_v (p_v - y_v)^2 = sum_v p_v^2 - 2 p_y + 1
    brier = probabilities.square().sum(dim=-1) - 2 * (-nll).exp() + 1
    # 0 log 0 is 0, for instance if a head excludes a token
    entropy = -torch.where(probabilities > 0, probabilities * logprobs, 0.0).sum(dim=-1)
    return Prediction(nll, top, most_probable == labels, brier, entropy)


def calibration_error(prediction: Prediction, num_bins: int) -> float:
    """Return the expected calibration error of the most probable token, 0 to 1 (Guo et al., 2017).

    Tokens are put into bins of equal width by the probability of the most probable token. The distance between mean
    probability and accuracy of a bin is weighted by its tokens.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    top = prediction.top_probability.float().clamp(
        0, 1
    )  # torchmetrics reads values above 1, which rounding may cause, as logits
    return float(binary_calibration_error(top, prediction.is_correct.int(), n_bins=num_bins, norm="l1"))


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
    """Return the cost of mixing of each mixed token, in nats: above 0 if the mixture costs more than its two ends.

    With NLL(y | Z) = -log sigma(Z W)_y, Z~ = lam Z_c + (1 - lam) Z_u and the mixed label lam Y_c + (1 - lam) Y_u of
    Step 2 of section 3.3:

        gap(lam) = lam NLL(y_c | Z~) + (1 - lam) NLL(y_u | Z~) - [lam NLL(y_c | Z_c) + (1 - lam) NLL(y_u | Z_u)]

    The first two terms are the Mixup loss. The gap is 0 at lam = 0 and lam = 1, and for two equal examples. It is not a
    distance to an optimum: the Mixup loss of a mixed label of two tokens is at least the label's entropy
    (`label_entropy`), so a model that is sure of both ends has a gap of at least this entropy.

    Args:
        confident: Last hidden states Z_c of the confident responses at the positions that are mixed.
        unconfident: Z_u of their partners.
        confident_labels: y_c, the next tokens of the confident responses.
        unconfident_labels: y_u, the next tokens of their partners.
        lams: Weights of the confident end, each 0 to 1.
        chunk_bytes: Size of a chunk's logits; None as in training on this device.
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
            of_c, of_u = (mixed.gather(-1, y.unsqueeze(-1)).squeeze(-1) for y in (y_c, y_u))
            of_mixed = -(lam * of_c + (1 - lam) * of_u)
            of_chunk.append(of_mixed - lam * nll_c - (1 - lam) * nll_u)
        gaps.append(torch.stack(of_chunk))
    return torch.cat(gaps, dim=1) if gaps else confident.new_empty(len(lams), 0)


def label_entropy(is_same: Bool[Tensor, " mixed"], lam: float) -> Float[Tensor, " mixed"]:
    """Return the entropy of each mixed label in nats, the minimum of the Mixup loss; 0 if both labels are one token."""
    entropy = -sum(p * math.log(p) for p in (lam, 1 - lam) if p > 0)
    return torch.where(is_same, 0.0, entropy)
