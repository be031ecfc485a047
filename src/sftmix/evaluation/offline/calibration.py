"""How far a model's next-token probabilities can be believed, read on response tokens."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sftmix.functional.equations import LMHead, logits
from sftmix.functional.fused import tokens_per_chunk


class Prediction(NamedTuple):
    """What a model predicts at each of some rows, and how it fares with the token that stands there.

    Attributes:
        nll: of that token, in nats.
        top_probability: of the most probable token, 0 to 1.
        is_correct: whether that most probable token stands there.
        brier: sum over the vocabulary of (probability - 1[it stands there])^2, 0 to 2 (Brier, 1950).
        entropy: of the distribution, in nats.
    """

    nll: Float[Tensor, " row"]
    top_probability: Float[Tensor, " row"]
    is_correct: Bool[Tensor, " row"]
    brier: Float[Tensor, " row"]
    entropy: Float[Tensor, " row"]


@torch.no_grad()
def predict(
    hidden: Float[Tensor, "row dim"], head: LMHead, labels: Int[Tensor, " row"], *, chunk_bytes: int | None = None
) -> Prediction:
    """The prediction at each row, chunk by chunk: no larger logits than a chunk's are held at a time.

    Args:
        hidden: last hidden states of the positions that predict.
        head: the language-model head.
        labels: the token that stands there.
        chunk_bytes: of a chunk's logits; None: as in training on this device.
    """
    size = tokens_per_chunk(head.weight, chunk_bytes)
    parts = [
        _predict(logits(hidden[start : start + size], head), labels[start : start + size])
        for start in range(0, len(hidden), size)
    ]
    return joined(parts)


def joined(parts: list[Prediction]) -> Prediction:
    """Predictions one after the other."""
    if not parts:
        none = torch.empty(0)
        return Prediction(none, none, none.bool(), none, none)
    return Prediction(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _predict(raw: Float[Tensor, "row vocab"], labels: Int[Tensor, " row"]) -> Prediction:
    logprobs = raw.log_softmax(dim=-1)
    probabilities = logprobs.exp()
    top, place = probabilities.max(dim=-1)
    nll = -logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    # sum_v (p_v - y_v)^2 = sum_v p_v^2 - 2 p_y + 1
    brier = probabilities.square().sum(dim=-1) - 2 * (-nll).exp() + 1
    # 0 log 0 is 0, also where a head rules a token out
    entropy = -torch.where(probabilities > 0, probabilities * logprobs, 0.0).sum(dim=-1)
    return Prediction(nll, top, place == labels, brier, entropy)


def calibration_error(prediction: Prediction, num_bins: int) -> float:
    """Expected calibration error of the most probable token, 0 to 1 (Guo et al., 2017).

    Rows are put into bins of equal width by the probability of their most probable token; the distance between the
    mean probability and the accuracy of a bin counts by its rows.
    """
    from torchmetrics.functional.classification import binary_calibration_error

    top = prediction.top_probability.float().clamp(0, 1)  # above 1 by rounding would be taken for a logit
    return float(binary_calibration_error(top, prediction.is_correct.int(), n_bins=num_bins, norm="l1"))
