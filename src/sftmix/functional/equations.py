"""The loss of SFTMix in dense form (arXiv 2410.05248, section 3 and Appendix A): the definition.

`fused_sftmix_loss` computes the same loss and gradient faster and is tested against this module. `trainer.loss=dense`
trains with `dense_sftmix_loss`.

Hidden states are indexed `[token, dim]`, logits `[token, vocab]`. Only tokens that carry loss appear. Their order is:
the P mixed tokens of the confident examples, then their P partners in the same order, then all unpaired tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# --- The language-model head W (section 3), with what real models add to it ---


class LMHead(NamedTuple):
    """The map from last hidden states to logits."""

    weight: Float[Tensor, "vocab dim"]  # W
    bias: Float[Tensor, " vocab"] | None = None  # Added to the scaled product
    scale: float = 1.0  # Factor of the logits, 1 for most model families
    softcap: float | None = None  # Final soft cap of Gemma-2, logits -> softcap * tanh(logits / softcap)


def logits(hidden: Float[Tensor, "token dim"], head: LMHead) -> Float[Tensor, "token vocab"]:
    """Return Z W with scale, bias and soft cap, in at least single precision."""
    raw = F.linear(hidden, head.weight)
    raw = raw if raw.dtype.itemsize >= 4 else raw.float()
    raw = raw * head.scale
    if head.bias is not None:
        raw = raw + head.bias
    return raw if head.softcap is None else head.softcap * (raw / head.softcap).tanh()


# --- Settings ---


@dataclass(frozen=True)
class TokenWeight:
    """A weight of each token in the NTP term, computed from the model's prediction at the token, without gradient.

    The entropy is that of the k most probable tokens, after their probabilities are divided by their sum.
    """

    function: Callable[..., Tensor]  # Maps the nll of each token, and its entropy if it is used, to the weight
    entropy_of: int | None = None  # k: how many of the most probable tokens the entropy (nats) is of. None: not used


TOKEN_WEIGHTS = {
    # Dynamic fine-tuning (arXiv 2508.05629): the probability of the token.
    "dft": TokenWeight(lambda nll: (-nll).exp()),
    # Entropy-adaptive fine-tuning (arXiv 2601.02151, with K = 20): the entropy of the 20 most probable tokens divided
    # by 3, which is about ln 20, the largest value. 3 is the number in the implementation of the authors.
    "eaft": TokenWeight(lambda nll, entropy: entropy / 3, entropy_of=20),
}
FORMS = ("full", "reweight", "labels")
DRO_LOSSES = ("step", "previous_epoch")


@dataclass(frozen=True)
class LossSettings:
    """How the loss of a step is computed. All fields are plain values.

    Raises:
        ValueError: If a value is out of range, or if chunk_bytes is set for the dense loss, which has no chunks.
    """

    mu: float | None  # Weight of the Mixup term. None: no Mixup term, so the loss is next-token prediction (NTP)
    normalize_by: str = "tokens"  # What divides S_mix: tokens (N, as S_ntp), or mixed_tokens (of the step)
    form: str = "full"  # What S_mix adds up: H (full), or of `mixup_parts` only R (reweight) or R + S (labels)
    label_smoothing: float = 0.0  # Probability that the target of NTP spreads over the vocabulary. Not in Mixup
    token_weight: str | None = None  # Key of `TOKEN_WEIGHTS`: a further weight of each token in NTP. Not in Mixup
    token_weight_power: float = 1.0  # Power of that weight
    dro_temperature: float | None = None  # Temperature of `dro_weights` of the examples in NTP. None: no such weights
    dro_losses: str = "step"  # Of which pass: step (one more, of the step), or previous_epoch (its training passes)
    implementation: str = "fused"  # fused (`fused_sftmix_loss`) or dense (`dense_sftmix_loss`)
    chunk_bytes: int | None = None  # Size of the logits that the fused loss holds at a time. None: `fused.CHUNK_BYTES`

    def __post_init__(self) -> None:
        is_chunked = self.chunk_bytes is None or (self.chunk_bytes >= 1 and self.implementation == "fused")
        for name, is_valid, expected in (
            ("mu", self.mu is None or self.mu >= 0, "a number of at least 0, or None for no Mixup term"),
            ("normalize_by", self.normalize_by in ("tokens", "mixed_tokens"), "tokens or mixed_tokens"),
            ("form", self.form in FORMS, f"one of {', '.join(FORMS)}"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and less than 1"),
            ("token_weight", self.token_weight in (None, *TOKEN_WEIGHTS), f"one of {', '.join(TOKEN_WEIGHTS)}"),
            ("token_weight_power", self.token_weight_power > 0, "above 0"),
            ("dro_temperature", self.dro_temperature is None or self.dro_temperature > 0, "above 0, or None"),
            ("dro_losses", self.dro_losses in DRO_LOSSES, f"one of {', '.join(DRO_LOSSES)}"),
            ("dro_losses", self.dro_losses == "step" or self.dro_temperature is not None, "step without a temperature"),
            ("implementation", self.implementation in ("fused", "dense"), "fused or dense"),
            ("chunk_bytes", is_chunked, "at least 1, only with implementation=fused"),
        ):
            if not is_valid:
                raise ValueError(f"{name}={getattr(self, name)}: expected {expected}")

    def mixup_denominator(self, num_tokens: int, num_mixed: int) -> int:
        """Return what divides S_mix: N, or the mixed tokens of the step (at least 1)."""
        return num_tokens if self.normalize_by == "tokens" else max(1, num_mixed)


# --- Next-token prediction (section 3.1) ---


def token_nll(
    hidden: Float[Tensor, "token dim"], head: LMHead, labels: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """Return the negative log-likelihood of each response token in nats, -log p(y_n | X, y_<n)."""
    logprobs = logits(hidden, head).log_softmax(dim=-1)
    return -logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def ntp_sum(
    hidden: Float[Tensor, "token dim"],
    head: LMHead,
    labels: Int[Tensor, " token"],
    weights: Float[Tensor, " token"],
    *,
    label_smoothing: float = 0.0,
    token_weight: TokenWeight | None = None,
    token_weight_power: float = 1.0,
) -> Float[Tensor, ""]:
    """Return S_ntp = sum_n w_n nll_n in nats, the paper's l_NTP.

    With label smoothing e, nll_n is the cross-entropy against (1 - e) onehot(y_n) + e / vocab. A token weight, to its
    power, is a factor of w_n that is computed from the prediction without smoothing.
    """
    logprobs = logits(hidden, head).log_softmax(dim=-1)
    nll = -logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    loss = nll
    if label_smoothing:
        loss = (1 - label_smoothing) * nll - label_smoothing * logprobs.mean(dim=-1)
    if token_weight is not None:
        inputs = [nll.detach()]
        if token_weight.entropy_of is not None:
            largest = logprobs.detach().topk(min(token_weight.entropy_of, logprobs.shape[-1])).values
            inputs.append(torch.special.entr(largest.softmax(dim=-1)).sum(dim=-1))
        weights = weights * token_weight.function(*inputs) ** token_weight_power
    return (weights * loss).sum()


def dro_weights(
    mean_nll: Float[Tensor, " example"], is_learned: Bool[Tensor, " example"], temperature: float
) -> Float[Tensor, " example"]:
    """Return the weight of each example of a step in IR-DRO (arXiv 2402.14270), without gradient.

    w = softmax(mean_nll / temperature) over the examples that are learned; 0 for all others. The NTP term is then the
    sum of w_i times the mean nll of example i: in nats per response token, as without IR-DRO. If all w_i are equal, it
    is the mean over the examples of their means, while plain NTP is the mean over all tokens.

    Args:
        mean_nll: Mean nll of the response tokens of each example in nats.
        is_learned: Whether an example has a weight above 0 in next-token prediction.
    """
    tilted = (mean_nll.detach() / temperature).masked_fill(~is_learned, -torch.inf)
    return tilted.softmax(dim=0).masked_fill(~is_learned, 0.0)  # if none is learned, the softmax is NaN


# --- Mixup (section 3.3) ---


def num_mixed_tokens(num_confident: int, num_unconfident: int) -> int:
    """Return N' = min(N_c, N_u): a pair is mixed at the positions that both responses have (Step 3)."""
    return min(num_confident, num_unconfident)


def interpolate(
    confident: Float[Tensor, "mixed width"],
    unconfident: Float[Tensor, "mixed width"],
    lam: Float[Tensor, " mixed"],
) -> Float[Tensor, "mixed width"]:
    """Return lam * confident + (1 - lam) * unconfident of each pair: Z~_n and Y~_n of Step 2."""
    lam = lam.unsqueeze(-1)
    return lam * confident + (1 - lam) * unconfident


def mixed_labels(
    confident: Int[Tensor, " mixed"], unconfident: Int[Tensor, " mixed"], lam: Float[Tensor, " mixed"], vocab_size: int
) -> Float[Tensor, "mixed vocab"]:
    """Return Y~_n of Step 2, the interpolation of the two one-hot labels."""
    y_c, y_u = (F.one_hot(labels, vocab_size).to(lam.dtype) for labels in (confident, unconfident))
    return interpolate(y_c, y_u, lam)


def mixup_cross_entropy(
    hidden: Float[Tensor, "mixed dim"], head: LMHead, labels: Float[Tensor, "mixed vocab"]
) -> Float[Tensor, " mixed"]:
    """Return H(Y~_n, sigma(Z~_n W)) of Step 3 in nats, the cross-entropy of prediction and label of each pair."""
    return -(labels * logits(hidden, head).log_softmax(dim=-1)).sum(dim=-1)


def mixup_sum(
    hidden: Float[Tensor, "token dim"],
    head: LMHead,
    labels: Int[Tensor, " token"],
    lam: Float[Tensor, " mixed"],
    *,
    form: str = "full",
) -> Float[Tensor, ""]:
    """Return S_mix = sum_n H(Y~_n, sigma(Z~_n W)) in nats over the P pairs of tokens, the paper's l_Mixup (Step 3).

    With form=reweight or form=labels, the sum of R or of R + S (`mixup_parts`), of the same pairs: controls.
    """
    confident, unconfident = slice(len(lam)), slice(len(lam), 2 * len(lam))
    lam = lam.to(hidden.dtype)
    if form != "full":
        reweighting, smoothing = reweighting_and_smoothing(hidden, head, labels, lam)
        return (reweighting if form == "reweight" else reweighting + smoothing).sum()
    mixed = interpolate(hidden[confident], hidden[unconfident], lam)
    targets = mixed_labels(labels[confident], labels[unconfident], lam, head.weight.shape[0])
    return mixup_cross_entropy(mixed, head, targets).sum()


def reweighting_and_smoothing(
    hidden: Float[Tensor, "token dim"], head: LMHead, labels: Int[Tensor, " token"], lam: Float[Tensor, " mixed"]
) -> tuple[Float[Tensor, " mixed"], Float[Tensor, " mixed"]]:
    """Return R and S of each pair in nats (`mixup_parts`): losses of the predictions of its two tokens.

    With a soft cap too: neither R nor S reads a mixed state.
    """
    num_pairs = len(lam)
    y_c, y_u = labels[:num_pairs], labels[num_pairs : 2 * num_pairs]
    z_c, z_u = hidden[:num_pairs], hidden[num_pairs : 2 * num_pairs]
    return (
        lam**2 * token_nll(z_c, head, y_c) + (1 - lam) ** 2 * token_nll(z_u, head, y_u),
        lam * (1 - lam) * (token_nll(z_c, head, y_u) + token_nll(z_u, head, y_c)),
    )


class MixupParts(NamedTuple):
    """Three parts of the Mixup loss of each pair, in nats: H = reweighting + smoothing - gap."""

    reweighting: Float[Tensor, " mixed"]  # R
    smoothing: Float[Tensor, " mixed"]  # S
    gap: Float[Tensor, " mixed"]  # J


def mixup_parts(
    hidden: Float[Tensor, "token dim"], head: LMHead, labels: Int[Tensor, " token"], lam: Float[Tensor, " mixed"]
) -> MixupParts:
    """Return R, S and J of each pair, with H(Y~_n, sigma(Z~_n W)) = R + S - J for a head without soft cap.

    Without a soft cap the logits of a mixed state are the mixed logits, z~ = lam z_c + (1 - lam) z_u. With the
    predictions p_c, p_u, p~ of both tokens and of the mixed state:

        R = lam^2 nll_c(y_c) + (1 - lam)^2 nll_u(y_u)         NTP of both tokens, re-weighted
        S = lam (1 - lam) (nll_c(y_u) + nll_u(y_c))           each token learns the label of its partner
        J = lam KL(p~ || p_c) + (1 - lam) KL(p~ || p_u)       at least 0; 0 if p_c = p_u or lam is 0 or 1

    R + S = lam lse(z_c) + (1 - lam) lse(z_u) - (lam z~[y_c] + (1 - lam) z~[y_u]), where lse is log-sum-exp, and
    J = lam lse(z_c) + (1 - lam) lse(z_u) - lse(z~): the Jensen gap of log-sum-exp. The difference is H.

    Raises:
        ValueError: If the head has a soft cap.
    """
    if head.softcap is not None:
        raise ValueError(f"softcap={head.softcap}: expected a head without soft cap")
    z_c, z_u = hidden[: len(lam)], hidden[len(lam) : 2 * len(lam)]
    lam = lam.to(hidden.dtype)
    p_c, p_u = (logits(z, head).log_softmax(dim=-1) for z in (z_c, z_u))
    mixed = logits(interpolate(z_c, z_u, lam), head).log_softmax(dim=-1)
    kl_c, kl_u = ((mixed.exp() * (mixed - logprobs)).sum(dim=-1) for logprobs in (p_c, p_u))
    reweighting, smoothing = reweighting_and_smoothing(hidden, head, labels, lam)
    return MixupParts(reweighting, smoothing, lam * kl_c + (1 - lam) * kl_u)


def softmax_distance(
    hidden: Float[Tensor, "token dim"], head: LMHead, lam: Float[Tensor, " mixed"]
) -> Float[Tensor, " mixed"]:
    """Return how far sigma(Z~_n W) is from lam sigma(Z_c W) + (1 - lam) sigma(Z_u W), for each pair (Appendix A).

    The total variation distance, 0 to 1. It is 0 where the prediction of a mixed state is the mixed prediction.
    """
    confident, unconfident = hidden[: len(lam)], hidden[len(lam) : 2 * len(lam)]
    lam = lam.to(hidden.dtype)
    of_mixed = logits(interpolate(confident, unconfident, lam), head).softmax(dim=-1)
    p_c, p_u = (logits(z, head).softmax(dim=-1) for z in (confident, unconfident))
    return (of_mixed - interpolate(p_c, p_u, lam.to(p_c.dtype))).abs().sum(dim=-1) / 2


def mixup_head_gradient(
    hidden: Float[Tensor, " dim"], weight: Float[Tensor, "vocab dim"], labels: Float[Tensor, " vocab"]
) -> Float[Tensor, "vocab dim"]:
    """Return dH / dW of one pair, (sigma(z~ W) - y~) z~^T (Appendix A).

    Since sigma(lam z_c W + (1 - lam) z_u W) is not lam sigma(z_c W) + (1 - lam) sigma(z_u W), the gradient is not a
    weighted sum of the NTP gradients of the two tokens: re-weighting examples cannot replace Mixup.
    """
    residual = (weight @ hidden).softmax(dim=-1) - labels
    return residual.outer(hidden)


# --- The loss of a step (Step 3) ---


class StepLoss(NamedTuple):
    """The loss of a micro-batch and its two sums. The losses of all micro-batches and ranks add up to the step's."""

    loss: Float[Tensor, ""]  # (S_ntp + mu * S_mix) / N in nats per response token. Only the loss carries a gradient
    ntp: Float[Tensor, ""]  # S_ntp in nats
    mixup: Float[Tensor, ""]  # S_mix in nats, 0 without a Mixup term
    nll: Float[Tensor, " token"]  # nll of each token, without smoothing and weights; empty for a whole step


def dense_sftmix_loss(
    hidden: Float[Tensor, "token dim"],
    head: LMHead,
    labels: Int[Tensor, " token"],
    weights: Float[Tensor, " token"],
    lam: Float[Tensor, " pair"],
    settings: LossSettings,
    *,
    num_tokens: int,
    num_mixed: int,
) -> StepLoss:
    """Return L = (S_ntp + mu * S_mix) / N, computed in at least single precision.

    Args:
        hidden: Last hidden states, in the order of tokens that this module's docstring describes.
        labels: The token that each position predicts.
        weights: Weight of each token in NTP, those of IR-DRO included. A token of weight 0 still enters its pair.
        lam: Share of the confident token in each of the P pairs of tokens.
        num_tokens: N, the response tokens of the whole step, over all micro-batches and ranks.
        num_mixed: Number of pairs of tokens of the whole step.

    Raises:
        ValueError: As `check_loss_inputs`.
    """
    check_loss_inputs(len(hidden), len(lam), num_tokens=num_tokens, num_mixed=num_mixed)
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, head.weight.dtype), torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weights = hidden.to(dtype), weights.to(dtype)
        bias = None if head.bias is None else head.bias.to(dtype)
        head = head._replace(weight=head.weight.to(dtype), bias=bias)
        s_ntp = ntp_sum(
            hidden,
            head,
            labels,
            weights,
            label_smoothing=settings.label_smoothing,
            token_weight=TOKEN_WEIGHTS.get(settings.token_weight or ""),
            token_weight_power=settings.token_weight_power,
        )
        with torch.no_grad():
            nll = token_nll(hidden, head, labels)
        if settings.mu is None:
            return StepLoss(s_ntp / num_tokens, s_ntp.detach(), s_ntp.new_zeros(()), nll)
        s_mix = mixup_sum(hidden, head, labels, lam, form=settings.form)
        loss = s_ntp / num_tokens + settings.mu * s_mix / settings.mixup_denominator(num_tokens, num_mixed)
        return StepLoss(loss, s_ntp.detach(), s_mix.detach(), nll)


def check_loss_inputs(num_hidden: int, num_pairs: int, *, num_tokens: int, num_mixed: int) -> None:
    """Check the counts of a micro-batch and of the whole step.

    Raises:
        ValueError: If N is less than 1, if the step has fewer pairs than the micro-batch, or if there are fewer hidden
            states than the pairs need.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens={num_tokens}: the loss is divided by it, expected at least 1")
    if num_mixed < num_pairs:
        raise ValueError(f"num_mixed={num_mixed}: expected at least {num_pairs}, the pairs of the micro-batch")
    if num_hidden < 2 * num_pairs:
        raise ValueError(f"{num_pairs} pairs need {2 * num_pairs} hidden states, received {num_hidden}")
