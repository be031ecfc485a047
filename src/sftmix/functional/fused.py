"""The loss of a step with its gradient, where Mixup has no matmul of its own (Step 3 of section 3.3).

The head is linear up to its soft cap, so the raw logits of a mixed state are those of its two rows, mixed:
z~ W = lam z_c W + (1 - lam) z_u W. Next-token prediction computes both anyway. What flows back to them is, with
g = d(nll)/d(raw logits) of each row and g~ = mu (sigma(z~ W) - y~) of the mixed one,

    G_c = w_c g_c + lam g~        G_u = w_u g_u + (1 - lam) g~        dZ = G W        dW = G^T Z

so a chunk of rows costs three matmuls with pairs and without. The dense equations that this equals stand in
`objective`, `mixup` and `perplexity`.

Rows come in the order that pairs want: the P confident ones, then their P unconfident partners, then the rows that
meet no one. A row that meets several stands there as often, with its weight at one of its places and 0 at the others.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sftmix.functional.head import LMHead

CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**29}  # of a chunk's logits; each chunk passes over dW once
BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**25}  # of what is worked on at a time between the matmuls: a core's cache
FEWEST_ROWS = 8  # of a block: below it, calls cost more than their work
SINGLE_OUT = hasattr(torch.ops.aten.mm, "dtype")  # a GPU's half-precision matmul with a single-precision result


class StepLoss(NamedTuple):
    """The loss of a part of a step and the two sums it is made of.

    Attributes:
        loss: (S_ntp + mu * S_mix) / N; the only one that carries a gradient.
        ntp: S_ntp in nats.
        mixup: S_mix in nats.
    """

    loss: Float[Tensor, ""]
    ntp: Float[Tensor, ""]
    mixup: Float[Tensor, ""]


def fused_sftmix_loss(
    hidden: Float[Tensor, "row dim"],
    head: LMHead,
    labels: Int[Tensor, " row"],
    weights: Float[Tensor, " row"],
    lam: Float[Tensor, " mixed"],
    *,
    mu: float,
    num_tokens: int,
    mixup_denominator: int | None = None,
    chunk_bytes: int | None = None,
) -> StepLoss:
    """L = (S_ntp + mu * S_mix) / N in nats per response token (Step 3), in at least single precision.

    The gradient is computed beside the loss, chunk by chunk, so no tensor of rows times vocabulary is ever held.
    Half-precision inputs are multiplied as they are on a GPU and in single precision on a CPU; sums are single.

    Args:
        hidden: last hidden states: row k of the first P meets row P + k, and rows from 2 P on meet no one.
        head: the language-model head; a frozen weight costs no dW.
        labels: the token that each row predicts.
        weights: of each row's next-token prediction; a row of weight 0 still enters its pair.
        lam: lambda of each of the P pairs of rows; empty for next-token prediction alone.
        mu: weight of the Mixup term.
        num_tokens: N, the response tokens of the whole step.
        mixup_denominator: divides S_mix in the place of N.
        chunk_bytes: of a chunk's logits; None: 128 MiB on a CPU, 512 MiB on a GPU.

    Raises:
        ValueError: a count below one, a negative mu, or fewer rows than the pairs take.
        RuntimeError: backward is run a second time, or differentiated.
    """
    by = num_tokens if mixup_denominator is None else mixup_denominator
    if num_tokens < 1 or by < 1:
        raise ValueError(f"the loss is divided by counts of at least 1, not by {num_tokens} and {by}")
    if mu < 0:
        raise ValueError(f"mu={mu} is below 0")
    if 2 * len(lam) > len(hidden):
        raise ValueError(f"{len(lam)} pairs need {2 * len(lam)} rows, there are {len(hidden)}")
    terms = _Terms(
        scale=head.scale,
        softcap=head.softcap,
        mixup_factor=mu * num_tokens / by,
        num_tokens=num_tokens,
        chunk_rows=rows_of_a_chunk(head.weight, chunk_bytes),
        with_gradient=torch.is_grad_enabled(),  # inside the function it always is off
        matmul_dtype=_matmul_dtype(hidden, head.weight),
    )
    return StepLoss(*_FusedLoss.apply(hidden, head.weight, head.bias, labels, weights, lam, terms))


@torch.no_grad()
def fused_token_nll(
    hidden: Float[Tensor, "row dim"], head: LMHead, labels: Int[Tensor, " row"], *, chunk_bytes: int | None = None
) -> Float[Tensor, " row"]:
    """Negative log-likelihood of each response token in nats (section 3.1), chunk by chunk and without a gradient."""
    matmul_dtype = _matmul_dtype(hidden, head.weight)
    with torch.autocast(hidden.device.type, enabled=False):
        weight = head.weight.to(matmul_dtype)
        nll = hidden.new_empty(len(hidden), dtype=_sum_dtype(matmul_dtype))
        chunks = _equal_parts(len(hidden), rows_of_a_chunk(weight, chunk_bytes))
        memory = nll.new_empty(max((c.stop - c.start for c in chunks), default=0), len(weight))
        for rows in chunks:
            z = hidden[rows].to(matmul_dtype)
            raw = _raw_logits(z, weight, head.bias, head.scale, memory[: len(z)])
            nll[rows] = _nll_(raw, labels[rows, None], raw.new_ones(()), head.softcap)
    return nll


def rows_of_a_chunk(weight: Float[Tensor, "vocab dim"], chunk_bytes: int | None) -> int:
    """How many rows' logits are held at a time."""
    budget = CHUNK_BYTES.get(weight.device.type, CHUNK_BYTES["cuda"]) if chunk_bytes is None else chunk_bytes
    return max(FEWEST_ROWS, budget // (len(weight) * max(4, weight.dtype.itemsize)))


def _rows_of_a_block(raw: Tensor) -> int:
    """How many of a chunk's rows are worked on at a time between the matmuls."""
    budget = BLOCK_BYTES.get(raw.device.type, BLOCK_BYTES["cuda"])
    return max(FEWEST_ROWS, budget // (raw.shape[1] * raw.itemsize))


class _Terms(NamedTuple):
    """What is no tensor: the head's scale and cap, the factor of d(S_mix) beside d(S_ntp), N, and how to compute."""

    scale: float
    softcap: float | None
    mixup_factor: float
    num_tokens: int
    chunk_rows: int
    with_gradient: bool
    matmul_dtype: torch.dtype


class _FusedLoss(torch.autograd.Function):
    """Loss and gradient in the forward pass; the backward pass only scales."""

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = [terms.with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            sums, grads = _sums_and_gradients(hidden, weight, bias, labels, weights, lam, terms, wanted)
        ctx.grads, ctx.num_tokens = grads, terms.num_tokens
        ntp, mixup = sums
        loss = (ntp + terms.mixup_factor * mixup) / terms.num_tokens
        ctx.mark_non_differentiable(ntp, mixup)
        ctx.set_materialize_grads(False)
        return loss, ntp, mixup

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: what comes back would pass for a constant
            raise RuntimeError("the fused loss has no second derivative")
        if ctx.grads is None:
            raise RuntimeError("the fused loss keeps its gradient for one backward pass: this is a second one")
        factor = upstream / ctx.num_tokens  # here, and not in G, where half precision would lose it
        grads, ctx.grads = ctx.grads, None
        return *(None if grad is None else grad.mul_(factor) for grad in grads), None, None, None, None


def _sums_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor,
    lam: Tensor,
    terms: _Terms,
    wanted: list[bool],
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """S_ntp and S_mix, and N times the gradients of hidden states, weight and bias, in at least single precision."""
    dtype = _sum_dtype(terms.matmul_dtype)
    weight = weight.to(terms.matmul_dtype)
    weights, lam = weights.to(dtype), lam.to(dtype)
    num_rows, num_pairs = len(hidden), len(lam)
    ntp, mixup = hidden.new_zeros(num_rows, dtype=dtype), hidden.new_zeros(num_pairs, dtype=dtype)
    d_hidden = torch.zeros_like(hidden, dtype=dtype) if wanted[0] else None
    d_weight = torch.zeros_like(weight, dtype=dtype) if wanted[1] else None
    d_bias = torch.zeros_like(bias, dtype=dtype) if wanted[2] and bias is not None else None
    num_chunks = -(-num_rows // terms.chunk_rows)
    memory = ntp.new_empty(min(num_rows, terms.chunk_rows + 2), len(weight))
    for k in range(num_chunks):  # equal ones: a short last chunk would pass over dW for a few rows
        pairs = slice(num_pairs * k // num_chunks, num_pairs * (k + 1) // num_chunks)
        alone = slice(*(2 * num_pairs + (num_rows - 2 * num_pairs) * edge // num_chunks for edge in (k, k + 1)))
        parts = (pairs, slice(num_pairs + pairs.start, num_pairs + pairs.stop), alone)
        z, y, w = (torch.cat([x[part] for part in parts]) for x in (hidden, labels, weights))
        z = z.to(terms.matmul_dtype)
        raw = _raw_logits(z, weight, bias, terms.scale, memory[: len(z)])
        if any(wanted):
            own, mixed = _residuals_(raw, y, w, lam[pairs], terms)
        else:
            mixed = _mixed_nll(raw, y, lam[pairs], terms.softcap)
            own = _nll_(raw, y[:, None], w.new_ones(()), terms.softcap)
        sizes = [pairs.stop - pairs.start] * 2 + [alone.stop - alone.start]
        for part, nll in zip(parts, own.split(sizes), strict=True):
            ntp[part] = nll
        mixup[pairs] = mixed
        if not any(wanted):
            continue
        if d_bias is not None:
            d_bias += raw.sum(0)
        if terms.scale != 1:
            raw *= terms.scale
        gradient = raw.to(terms.matmul_dtype)
        if d_hidden is not None:
            of_rows = _matmul(gradient, weight, d_hidden.new_empty(z.shape))
            for part, rows in zip(parts, of_rows.split(sizes), strict=True):
                d_hidden[part] = rows
        if d_weight is not None:
            _add_matmul_(d_weight, gradient.T, z)
    return ((weights * ntp).sum(), mixup.sum()), (d_hidden, d_weight, d_bias)


def _residuals_(raw: Tensor, labels: Tensor, weights: Tensor, lam: Tensor, terms: _Terms) -> tuple[Tensor, Tensor]:
    """Overwrite the raw logits of a chunk by G; the nll of each row and of each mixed one come back."""
    num_pairs = len(lam)
    own, mixed = torch.empty_like(weights), torch.empty_like(lam)
    block = _rows_of_a_block(raw)
    one, memory = raw.new_ones(1, 1), raw.new_empty(min(num_pairs, block), raw.shape[1])
    for c in _equal_parts(num_pairs, block):
        u = slice(num_pairs + c.start, num_pairs + c.stop)
        mixing = lam[c, None]
        mixture = torch.lerp(raw[u], raw[c], mixing, out=memory[: len(mixing)])
        mixed[c], mass = _residual_(
            mixture, torch.stack((labels[c], labels[u]), 1), torch.cat((mixing, 1 - mixing), 1), terms.softcap
        )
        mixture_factor = terms.mixup_factor / mass
        for rows, share in ((c, mixing), (u, 1 - mixing)):
            own[rows], mass = _residual_(raw[rows], labels[rows, None], one, terms.softcap)
            raw[rows].mul_(weights[rows, None] / mass).addcmul_(mixture, share * mixture_factor)
    for part in _equal_parts(len(raw) - 2 * num_pairs, block):
        rows = slice(2 * num_pairs + part.start, 2 * num_pairs + part.stop)
        own[rows], mass = _residual_(raw[rows], labels[rows, None], one, terms.softcap)
        raw[rows].mul_(weights[rows, None] / mass)
    return own, mixed


def _residual_(raw: Tensor, labels: Tensor, shares: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Overwrite raw logits by s (sigma - y), times the soft cap's slope; nll and s = sum exp(logits - largest)."""
    slope = None
    if softcap is not None:
        slope = 1 - _cap_(raw, softcap).div(softcap).square_()
    nll, mass = _exponentials_(raw, labels, shares)
    for k in range(labels.shape[1]):  # one after the other: two equal labels add up in a fixed order
        raw.scatter_add_(1, labels[:, k : k + 1], (-mass * shares[:, k : k + 1]))
    if slope is not None:
        raw.mul_(slope)
    return nll, mass


def _exponentials_(logits: Tensor, labels: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits by exp(logits - largest); the nll of soft labels, and the sum of the exponentials."""
    at_labels = (logits.gather(1, labels) * shares).sum(1)
    largest = logits.amax(1, keepdim=True)
    mass = logits.sub_(largest).exp_().sum(1, keepdim=True)
    return (largest + mass.log()).squeeze(1) - at_labels, mass


def _cap_(raw: Tensor, softcap: float) -> Tensor:
    """Overwrite raw logits by cap * tanh(logits / cap)."""
    return raw.div_(softcap).tanh_().mul_(softcap)


def _mixed_nll(raw: Tensor, labels: Tensor, lam: Tensor, softcap: float | None) -> Tensor:
    """The nll of the mixed rows of a chunk, without a gradient."""
    num_pairs = len(lam)
    confident, unconfident = slice(num_pairs), slice(num_pairs, 2 * num_pairs)
    shares = torch.stack((lam, 1 - lam), 1)
    mixture = torch.lerp(raw[unconfident], raw[confident], lam[:, None])
    return _nll_(mixture, torch.stack((labels[confident], labels[unconfident]), 1), shares, softcap)


def _nll_(raw: Tensor, labels: Tensor, shares: Tensor, softcap: float | None) -> Tensor:
    """The nll of a chunk's rows without a gradient; their raw logits are overwritten."""
    nll, shares = raw.new_empty(len(raw)), shares.expand(labels.shape)
    for rows in _equal_parts(len(raw), _rows_of_a_block(raw)):
        if softcap is not None:
            _cap_(raw[rows], softcap)
        nll[rows], _ = _exponentials_(raw[rows], labels[rows], shares[rows])
    return nll


def _raw_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, out: Tensor) -> Tensor:
    """Z W, scaled, with its bias, before the soft cap."""
    raw = _matmul(hidden, weight.T, out)
    if scale != 1:
        raw *= scale
    return raw if bias is None else raw.add_(bias)


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What is multiplied: what the model computes in on a GPU; at least single precision on a CPU."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if hidden.device.type == "cpu":  # most have no half-precision matmul and emulate it, three times slower
        return torch.promote_types(dtype, torch.float32)
    autocast = torch.is_autocast_enabled(hidden.device.type)
    return torch.get_autocast_dtype(hidden.device.type) if autocast else dtype


def _sum_dtype(matmul_dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(matmul_dtype, torch.float32)


def _matmul(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """A product in the precision of its sums: half-precision factors, single-precision result."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if SINGLE_OUT:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(left @ right)


def _add_matmul_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to a total without rounding it to the factors' precision first."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif SINGLE_OUT:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


def _equal_parts(number: int, most: int) -> list[slice]:
    """Cut a count into parts of at most so many, as equal as they can be."""
    parts = -(-number // most)
    return [slice(number * k // parts, number * (k + 1) // parts) for k in range(parts)]
