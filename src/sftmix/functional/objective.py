"""Step 3 of section 3.3: the loss of a step, L = L_NTP + mu * L_Mixup.

Both terms are sums over tokens in the paper. Divided by N, the number of response tokens of *all* examples of the
optimizer step, the loss of a step is L = (S_ntp + mu * S_mix) / N. A part of a step (a micro-batch, a rank) adds its
part of the two sums over the N of the whole step, so that the parts add up to the step however it was cut.
"""

from jaxtyping import Float, Int
from torch import Tensor

from sftmix.functional.head import LMHead
from sftmix.functional.mixup import interpolate, mixed_labels, mixup_cross_entropy
from sftmix.functional.perplexity import token_nll


def ntp_sum(
    hidden: Float[Tensor, "row dim"], head: LMHead, labels: Int[Tensor, " row"], weights: Float[Tensor, " row"]
) -> Float[Tensor, ""]:
    """S_ntp: nats of the response tokens, each times its example's weight (section 3.1's l_NTP)."""
    return (weights * token_nll(hidden, head, labels)).sum()


def mixup_sum(
    hidden: Float[Tensor, "row dim"], head: LMHead, labels: Int[Tensor, " row"], lam: Float[Tensor, " mixed"]
) -> Float[Tensor, ""]:
    """S_mix: nats over the mixed positions (Step 3's l_Mixup).

    Args:
        hidden: of P confident rows, their P unconfident partners in the same order, and any rows that meet no one.
        head: the language-model head.
        labels: the token that each row predicts.
        lam: lambda of each of the P pairs of rows.
    """
    confident, unconfident = slice(len(lam)), slice(len(lam), 2 * len(lam))
    lam = lam.to(hidden.dtype)
    mixed = interpolate(hidden[confident], hidden[unconfident], lam)
    targets = mixed_labels(labels[confident], labels[unconfident], lam, head.weight.shape[0])
    return mixup_cross_entropy(mixed, head, targets).sum()


def sftmix_loss(
    ntp_sum: Float[Tensor, ""],
    mixup_sum: Float[Tensor, ""],
    *,
    mu: float,
    num_tokens: int,
    mixup_denominator: int | None = None,
) -> Float[Tensor, ""]:
    """L = (S_ntp + mu * S_mix) / N in nats per response token (Step 3).

    Args:
        ntp_sum: S_ntp of this part of the step.
        mixup_sum: S_mix of this part of the step.
        mu: weight of the Mixup term; 0 leaves next-token prediction.
        num_tokens: N, the response tokens of the whole step.
        mixup_denominator: divides S_mix in the place of N (the ablation: the mixed tokens of the whole step).

    Raises:
        ValueError: a count below one, or a negative mu.
    """
    by = num_tokens if mixup_denominator is None else mixup_denominator
    if num_tokens < 1 or by < 1:
        raise ValueError(f"the loss is divided by counts of at least 1, not by {num_tokens} and {by}")
    if mu < 0:
        raise ValueError(f"mu={mu} is below 0")
    return ntp_sum / num_tokens + mu * mixup_sum / by
