"""The loss of a micro-batch with its gradient, without a matmul for the Mixup term (Step 3 of section 3.3).

The head is linear up to its soft cap. So the raw logits of a mixed hidden state are the mixed raw logits of its two
tokens, z~ W = lam z_c W + (1 - lam) z_u W, and next-token prediction (NTP) computes both anyway. With
g = d(nll)/d(raw logits) of each token and g~ = f (sigma(z~ W) - y~) of the pair, the gradients are as below. The factor
f is mu, or mu N / P with normalize_by=mixed_tokens.

    G_c = w_c g_c + lam g~        G_u = w_u g_u + (1 - lam) g~        dZ = G W        dW = G^T Z

With form=reweight or form=labels, the Mixup loss of a pair is a weighted sum of nll of its two tokens, so a token has
more weight on its own label and, with form=labels, the label of its partner.

A chunk of tokens costs three matmuls, with pairs and without. `equations` defines the loss and the order of the tokens.

Functions whose name ends in an underscore overwrite their first argument.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sftmix.functional.equations import TOKEN_WEIGHTS, LMHead, LossSettings, StepLoss, TokenWeight, check_loss_inputs

CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**29}  # logits of a chunk; each chunk reads and writes dW once
BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**25}  # logits of a block between the matmuls: fits the cache of a core
MIN_TOKENS = 8  # of a chunk or block; smaller ones cost more calls than computation


def fused_sftmix_loss(
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
    """Return L = (S_ntp + mu * S_mix) / N in nats per response token, in at least single precision.

    The gradient is computed together with the loss, chunk by chunk, so the logits of all tokens never exist at once.
    Half-precision inputs are multiplied in half precision on a GPU and in single precision on a CPU. Sums are in single
    precision. The arguments are those of `dense_sftmix_loss`. A frozen weight of the head costs no dW.

    Raises:
        ValueError: As `check_loss_inputs`.
        RuntimeError: In backward, if it runs a second time or is differentiated.
    """
    check_loss_inputs(len(hidden), len(lam), num_tokens=num_tokens, num_mixed=num_mixed)
    terms = _Terms(
        scale=head.scale,
        softcap=head.softcap,
        mixup_factor=(settings.mu or 0.0) * num_tokens / settings.mixup_denominator(num_tokens, num_mixed),
        form=settings.form,
        label_smoothing=settings.label_smoothing,
        token_weight=TOKEN_WEIGHTS.get(settings.token_weight or ""),
        token_weight_power=settings.token_weight_power,
        num_tokens=num_tokens,
        chunk_tokens=tokens_per_chunk(head.weight, settings.chunk_bytes),
        with_gradient=torch.is_grad_enabled(),  # in forward and backward of an autograd function it is always off
        matmul_dtype=_matmul_dtype(hidden, head.weight),
    )
    lam = lam if settings.mu is not None else lam[:0]
    return StepLoss(*_FusedLoss.apply(hidden, head.weight, head.bias, labels, weights, lam, terms))


@torch.no_grad()
def fused_token_nll(
    hidden: Float[Tensor, "token dim"], head: LMHead, labels: Int[Tensor, " token"], *, chunk_bytes: int | None = None
) -> Float[Tensor, " token"]:
    """Return the negative log-likelihood of each token in nats (section 3.1), chunk by chunk and without a gradient."""
    matmul_dtype = _matmul_dtype(hidden, head.weight)
    with torch.autocast(hidden.device.type, enabled=False):
        weight = head.weight.to(matmul_dtype)
        nll = hidden.new_empty(len(hidden), dtype=torch.promote_types(matmul_dtype, torch.float32))
        chunks = _equal_slices(len(hidden), tokens_per_chunk(weight, chunk_bytes))
        memory = nll.new_empty(max((c.stop - c.start for c in chunks), default=0), len(weight))
        for chunk in chunks:
            z = hidden[chunk].to(matmul_dtype)
            raw = _raw_logits(z, weight, head.bias, head.scale, memory[: len(z)])
            nll[chunk] = _nll_(raw, labels[chunk, None], head.softcap)
    return nll


def tokens_per_chunk(weight: Float[Tensor, "vocab dim"], chunk_bytes: int | None) -> int:
    """Return the number of tokens of a chunk."""
    budget = CHUNK_BYTES.get(weight.device.type, CHUNK_BYTES["cuda"]) if chunk_bytes is None else chunk_bytes
    return max(MIN_TOKENS, budget // (len(weight) * max(4, weight.dtype.itemsize)))


def _tokens_per_block(raw: Tensor) -> int:
    budget = BLOCK_BYTES.get(raw.device.type, BLOCK_BYTES["cuda"])
    return max(MIN_TOKENS, budget // (raw.shape[1] * raw.itemsize))


class _Terms(NamedTuple):
    """Settings of the computation."""

    scale: float
    softcap: float | None
    mixup_factor: float  # d(N L) / d(S_mix)
    form: str
    label_smoothing: float
    token_weight: TokenWeight | None
    token_weight_power: float
    num_tokens: int  # N
    chunk_tokens: int
    with_gradient: bool
    matmul_dtype: torch.dtype  # precision of the factors of the matmuls


class _FusedLoss(torch.autograd.Function):
    """Compute loss and gradient in the forward pass. The backward pass only scales the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        weights: Tensor,
        lam: Tensor,
        terms: _Terms,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs_gradient = [terms.with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            losses, grads = _losses_and_gradients(hidden, weight, bias, labels, weights, lam, terms, needs_gradient)
        ctx.grads, ctx.num_tokens = grads, terms.num_tokens
        ntp, mixup, nll = losses
        loss = (ntp + terms.mixup_factor * mixup) / terms.num_tokens
        ctx.mark_non_differentiable(ntp, mixup, nll)
        ctx.set_materialize_grads(False)
        return loss, ntp, mixup, nll

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: autograd would treat the returned gradient as a constant
            raise RuntimeError("the fused loss has no second derivative")
        if ctx.grads is None:
            raise RuntimeError("the fused loss keeps its gradient for one backward pass: this is a second one")
        factor = upstream / ctx.num_tokens  # here and not in G, where half precision would lose it
        grads, ctx.grads = ctx.grads, None
        return *(None if grad is None else grad.mul_(factor) for grad in grads), None, None, None, None


def _losses_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    lam: Tensor,
    terms: _Terms,
    needs_gradient: list[bool],
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """Return S_ntp, S_mix and nll, and N times the gradients of hidden states, weight, bias, in at least float32."""
    dtype = torch.promote_types(terms.matmul_dtype, torch.float32)
    weight = weight.to(terms.matmul_dtype)
    weights, lam = weights.to(dtype), lam.to(dtype)
    num_hidden, num_pairs = len(hidden), len(lam)
    ntp, mixup = hidden.new_zeros(num_hidden, dtype=dtype), hidden.new_zeros(num_pairs, dtype=dtype)
    nll = torch.zeros_like(ntp)
    d_hidden = torch.zeros_like(hidden, dtype=dtype) if needs_gradient[0] else None
    d_weight = torch.zeros_like(weight, dtype=dtype) if needs_gradient[1] else None
    d_bias = torch.zeros_like(bias, dtype=dtype) if needs_gradient[2] and bias is not None else None
    num_chunks = -(-num_hidden // terms.chunk_tokens)
    memory = ntp.new_empty(min(num_hidden, terms.chunk_tokens + 2), len(weight))
    for k in range(num_chunks):  # chunks of equal size: a short last one would read and write dW for a few tokens
        pairs = slice(num_pairs * k // num_chunks, num_pairs * (k + 1) // num_chunks)
        num_unpaired = num_hidden - 2 * num_pairs
        unpaired = slice(*(2 * num_pairs + num_unpaired * edge // num_chunks for edge in (k, k + 1)))
        parts = (pairs, slice(num_pairs + pairs.start, num_pairs + pairs.stop), unpaired)
        sizes = [part.stop - part.start for part in parts]
        z, y, w = (torch.cat([x[part] for part in parts]) for x in (hidden, labels, weights))
        z = z.to(terms.matmul_dtype)
        raw = _raw_logits(z, weight, bias, terms.scale, memory[: len(z)])
        of_tokens, mixup[pairs] = _losses_and_residuals_(raw, y, w, lam[pairs], terms)
        for part, losses in zip(parts, of_tokens.split(sizes, dim=1), strict=True):
            ntp[part], nll[part] = losses
        if not any(needs_gradient):
            continue
        if d_bias is not None:
            d_bias += raw.sum(0)
        if terms.scale != 1:
            raw *= terms.scale
        residuals = raw.to(terms.matmul_dtype)
        if d_hidden is not None:
            d_chunk = _matmul(residuals, weight, d_hidden.new_empty(z.shape))
            for part, d_part in zip(parts, d_chunk.split(sizes), strict=True):
                d_hidden[part] = d_part
        if d_weight is not None:
            _add_matmul_(d_weight, residuals.T, z)
    return ((weights * ntp).sum(), mixup.sum(), nll), (d_hidden, d_weight, d_bias)


def _losses_and_residuals_(
    raw: Tensor, labels: Tensor, weights: Tensor, lam: Tensor, terms: _Terms
) -> tuple[Tensor, Tensor]:
    """Overwrite the raw logits of a chunk by G. Return NTP loss and nll, `[2, token]`, and the Mixup loss `[pair]`."""
    num_pairs = len(lam)
    ntp, mixup = weights.new_empty(2, len(weights)), torch.empty_like(lam)
    block = _tokens_per_block(raw)
    memory = raw.new_empty(min(num_pairs, block) if terms.form == "full" else 0, raw.shape[1])
    for c in _equal_slices(num_pairs, block):
        u = slice(num_pairs + c.start, num_pairs + c.stop)
        of_pair, shares = torch.stack((labels[c], labels[u]), 1), torch.stack((lam[c], 1 - lam[c]), 1)
        if terms.form != "full":
            squares, cross = shares.square(), shares.prod(1, keepdim=True)
            for k, tokens in enumerate((c, u)):
                own, share = of_pair[:, k : k + 1], squares[:, k : k + 1]
                if terms.form == "labels":
                    own, share = torch.cat((own, of_pair[:, 1 - k : 2 - k]), 1), torch.cat((share, cross), 1)
                ntp[:, tokens], loss = _ntp_residual_(raw[tokens], own, weights[tokens, None], terms, share)
                mixup[c] = loss if k == 0 else mixup[c] + loss
            continue
        mixture = torch.lerp(raw[u], raw[c], lam[c, None], out=memory[: len(shares)])
        mixup[c], mass = _mixup_residual_(mixture, of_pair, shares, terms.softcap)
        scale = terms.mixup_factor / mass
        for tokens, share in ((c, shares[:, :1]), (u, shares[:, 1:])):
            ntp[:, tokens], _ = _ntp_residual_(raw[tokens], labels[tokens, None], weights[tokens, None], terms)
            raw[tokens].addcmul_(mixture, share * scale)
    for part in _equal_slices(len(raw) - 2 * num_pairs, block):
        tokens = slice(2 * num_pairs + part.start, 2 * num_pairs + part.stop)
        ntp[:, tokens], _ = _ntp_residual_(raw[tokens], labels[tokens, None], weights[tokens, None], terms)
    return ntp, mixup


def _mixup_residual_(raw: Tensor, labels: Tensor, shares: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Overwrite mixed raw logits by mass * d(loss)/d(raw). Return the loss of each pair and mass, sum exp(z - max)."""
    slope = _cap_(raw, softcap)
    at_labels = (raw.gather(1, labels) * shares).sum(1)
    logsumexp, mass = _exponentials_(raw)
    for k in (0, 1):  # one label after the other: two equal labels add up in a fixed order
        raw.scatter_add_(1, labels[:, k : k + 1], -mass * shares[:, k : k + 1])
    if slope is not None:
        raw.mul_(slope)
    return logsumexp - at_labels, mass


def _ntp_residual_(
    raw: Tensor, labels: Tensor, weights: Tensor, terms: _Terms, shares: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Overwrite raw logits by d(loss)/d(raw) of the weighted loss. `weights` is `[token, 1]`.

    Args:
        labels: Label of each token and, with two `shares`, the label of its partner: `[token, label]`.
        shares: Weight of the nll of each label in the Mixup term, `[token, label]`. None: no Mixup term.

    Returns:
        The NTP loss of each token, times its token weight but not times `weights`, and its nll: `[2, token]`; and its
        part of the Mixup loss, which is empty without `shares`.
    """
    slope = _cap_(raw, terms.softcap)
    smoothing = terms.label_smoothing
    at_labels = raw.gather(1, labels)
    at_label = at_labels[:, 0]
    mean = raw.mean(1) if smoothing else None
    logsumexp, mass = _exponentials_(raw)
    loss = nll = logsumexp - at_label
    if mean is not None:
        loss = nll + smoothing * (at_label - mean)
    if terms.token_weight is not None:
        inputs = [nll]
        if terms.token_weight.entropy_of is not None:  # entr(x) = -x log x
            largest = raw.topk(min(terms.token_weight.entropy_of, raw.shape[1])).values
            inputs.append(torch.special.entr(largest / largest.sum(1, keepdim=True)).sum(1))
        token_weight = terms.token_weight.function(*inputs) ** terms.token_weight_power
        loss, weights = token_weight * loss, token_weight[:, None] * weights
    mixup, own = raw.new_empty(0), labels[:, :1]
    if shares is None:
        raw.scatter_add_(1, own, -mass if not smoothing else (smoothing - 1) * mass)
        spread, factor = mass * (smoothing / raw.shape[1]), weights / mass
    else:
        mixup = (shares * (logsumexp[:, None] - at_labels)).sum(1)
        shares = shares * terms.mixup_factor
        raw.mul_((weights + shares.sum(1, keepdim=True)) / mass)
        raw.scatter_add_(1, own, (smoothing - 1) * weights - shares[:, :1])
        if shares.shape[1] > 1:
            raw.scatter_add_(1, labels[:, 1:], -shares[:, 1:])
        spread, factor = weights * (smoothing / raw.shape[1]), None
    if smoothing:
        raw.sub_(spread)
    if slope is not None:
        raw.mul_(slope)
    if factor is not None:
        raw.mul_(factor)
    return torch.stack((loss, nll)), mixup


def _exponentials_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits by exp(logits - largest). Return logsumexp of each token and the sums `[token, 1]`."""
    largest = logits.amax(1, keepdim=True)
    mass = logits.sub_(largest).exp_().sum(1, keepdim=True)
    return (largest + mass.log()).squeeze(1), mass


def _cap_(raw: Tensor, softcap: float | None) -> Tensor | None:
    """Overwrite raw logits by softcap * tanh(raw / softcap). Return the slope, or None without a soft cap."""
    if softcap is None:
        return None
    raw.div_(softcap).tanh_().mul_(softcap)
    return 1 - raw.div(softcap).square_()


def _nll_(raw: Tensor, labels: Tensor, softcap: float | None) -> Tensor:
    """Overwrite the raw logits of a chunk and return the nll of each token, without a gradient."""
    nll = raw.new_empty(len(raw))
    for block in _equal_slices(len(raw), _tokens_per_block(raw)):
        if softcap is not None:
            raw[block].div_(softcap).tanh_().mul_(softcap)
        at_label = raw[block].gather(1, labels[block]).squeeze(1)
        nll[block] = _exponentials_(raw[block])[0] - at_label
    return nll


def _raw_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, out: Tensor) -> Tensor:
    """Return Z W with scale and bias, before the soft cap."""
    raw = _matmul(hidden, weight.T, out)
    if scale != 1:
        raw *= scale
    return raw if bias is None else raw.add_(bias)


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the precision of factors: the model's own on a GPU, at least single precision on a CPU."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if hidden.device.type == "cpu":  # most CPUs emulate half-precision matmuls, three times slower
        return torch.promote_types(dtype, torch.float32)
    autocast = torch.is_autocast_enabled(hidden.device.type)
    return torch.get_autocast_dtype(hidden.device.type) if autocast else dtype


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Multiply into `out`, from half-precision factors to a single-precision result if the two differ."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    return torch.mm(left, right, out_dtype=out.dtype, out=out)


def _add_matmul_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to a total, without rounding the product to the precision of the factors first."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def _equal_slices(number: int, most: int) -> list[slice]:
    """Cut range(number) into the fewest slices of at most `most`, of sizes that differ by at most 1."""
    parts = -(-number // most)
    return [slice(number * k // parts, number * (k + 1) // parts) for k in range(parts)]
