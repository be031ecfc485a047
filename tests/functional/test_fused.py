"""The fused loss against the dense equations, and its cost: three matmuls a chunk, never the logits of all tokens."""

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sftmix.functional.equations import (
    FORMS,
    TOKEN_WEIGHTS,
    LMHead,
    LossSettings,
    TokenWeight,
    dense_sftmix_loss,
    token_nll,
)
from sftmix.functional.fused import fused_sftmix_loss, fused_token_nll, tokens_per_chunk


class Case(NamedTuple):
    pairs: int
    unpaired: int
    vocab: int
    dim: int
    lam: str
    weights: str
    equal_labels: bool
    repeated: bool
    tied: bool
    frozen: bool
    bias: bool
    scale: float
    softcap: float | None
    mu: float | None
    by_mixed: bool
    form: str
    smoothing: float
    token_weight: str | None
    power: float
    chunk_tokens: int
    seed: int


cases = st.builds(
    Case,
    pairs=st.integers(0, 7),
    unpaired=st.integers(0, 9),
    vocab=st.integers(2, 40),
    dim=st.integers(1, 12),
    lam=st.sampled_from(["drawn", "0", "1", "0 and 1"]),
    weights=st.sampled_from(["1", "0", "0 and 1", "drawn"]),
    equal_labels=st.booleans(),
    repeated=st.booleans(),
    tied=st.booleans(),
    frozen=st.booleans(),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.125, 3.0]),
    softcap=st.sampled_from([None, 1.5, 30.0]),
    mu=st.sampled_from([None, 0.0, 0.2, 1.0]),
    by_mixed=st.booleans(),
    form=st.sampled_from(FORMS),
    smoothing=st.sampled_from([0.0, 0.1]),
    token_weight=st.sampled_from([None, *TOKEN_WEIGHTS, "entropy"]),
    power=st.sampled_from([1.0, 2.0]),
    chunk_tokens=st.integers(8, 24),
    seed=st.integers(0, 1000),
)


def settings_of(case: Case) -> LossSettings:
    return LossSettings(
        mu=case.mu,
        normalize_by="mixed_tokens" if case.by_mixed else "tokens",
        form=case.form,
        label_smoothing=case.smoothing,
        token_weight=case.token_weight,
        token_weight_power=case.power,
    )


@pytest.fixture(autouse=True, scope="module")
def a_token_weight_of_nll_and_entropy():
    """No registered token weight uses both."""
    TOKEN_WEIGHTS["entropy"] = TokenWeight(lambda nll, entropy: 0.3 + nll.square() * entropy, entropy_of=7)
    yield
    del TOKEN_WEIGHTS["entropy"]


class Result(NamedTuple):
    loss: torch.Tensor
    ntp: torch.Tensor
    mixup: torch.Tensor
    grads: list[torch.Tensor | None]


def inputs(case: Case, dtype: torch.dtype):
    """Return leaves and fixed tensors. The weight of a tied head is also the embedding of the hidden states."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    num_hidden = 2 * case.pairs + case.unpaired
    drawn = torch.rand(max(num_hidden, 1), generator=generator, dtype=torch.float64)
    ends = (drawn > 0.5).double()
    lam = {"drawn": drawn, "0": drawn * 0, "1": drawn * 0 + 1, "0 and 1": ends}[case.lam][: case.pairs]
    weights = {"1": drawn * 0 + 1, "0": drawn * 0, "0 and 1": 1 - ends, "drawn": drawn}[case.weights][:num_hidden]
    labels = torch.randint(case.vocab, (num_hidden,), generator=generator)
    if case.equal_labels:
        labels[case.pairs : 2 * case.pairs] = labels[: case.pairs]
    order = torch.arange(num_hidden)
    if case.repeated and num_hidden:  # one hidden state at several positions, as a token of several pairs
        order = torch.randint(max(1, num_hidden // 2), (num_hidden,), generator=generator)
    weight = (normal(case.vocab, case.dim) / case.dim**0.5).requires_grad_(not case.frozen)
    bias = normal(case.vocab).requires_grad_() if case.bias else None
    states = normal(max(num_hidden, 1), case.dim).requires_grad_()
    lookup = torch.randint(case.vocab, (max(num_hidden, 1),), generator=generator)
    return weight, bias, states, lookup, order, labels, weights.to(dtype), lam.to(dtype)


def compute(case: Case, dtype: torch.dtype, *, fused: bool, upstream: float = 1.0) -> Result:
    weight, bias, states, lookup, order, labels, weights, lam = inputs(case, dtype)
    head = LMHead(weight, bias, case.scale, case.softcap)
    hidden = (states + weight[lookup] if case.tied else states)[order]
    settings = settings_of(case)
    if fused:
        settings = replace(settings, chunk_bytes=case.chunk_tokens * case.vocab * max(4, dtype.itemsize))
    loss_of = fused_sftmix_loss if fused else dense_sftmix_loss
    counts = {"num_tokens": len(order) + 3, "num_mixed": len(lam) + 2}
    loss, ntp, mixup, _ = loss_of(hidden, head, labels, weights, lam, settings, **counts)
    (loss * upstream).backward()
    return Result(
        loss.detach(), ntp.detach(), mixup.detach(), [x.grad for x in (weight, bias, states) if x is not None]
    )


def assert_equal(got: Result, want: Result, tolerance: float) -> None:
    for ours, theirs in zip(got[:3], want[:3], strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=tolerance, abs=tolerance)
    for ours, theirs in zip(got.grads, want.grads, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert (ours - theirs).abs().max().item() <= tolerance * max(theirs.abs().max().item(), 1.0)


@given(cases)
def test_it_equals_the_dense_equations_in_float64(case):
    assert_equal(compute(case, torch.float64, fused=True), compute(case, torch.float64, fused=False), 1e-12)


@given(cases)
def test_it_equals_the_dense_equations_in_float32(case):
    """Against the dense equations in float64, from the same single-precision numbers."""
    rounding = 1e-5 if case.token_weight == "entropy" else 1e-6  # a small entropy is a difference of larger numbers
    assert_equal(compute(case, torch.float32, fused=True), in_double(case), rounding)


def in_double(case: Case) -> Result:
    """The dense equations in float64 over the numbers that float32 has."""
    weight, bias, states, lookup, order, labels, weights, lam = inputs(case, torch.float32)
    leaves = [x if x is None else x.detach().double().requires_grad_(x.requires_grad) for x in (weight, bias, states)]
    head = LMHead(leaves[0], leaves[1], case.scale, case.softcap)
    hidden = (leaves[2] + leaves[0][lookup] if case.tied else leaves[2])[order]
    counts = {"num_tokens": len(order) + 3, "num_mixed": len(lam) + 2}
    loss, ntp, mixup, _ = dense_sftmix_loss(
        hidden, head, labels, weights.double(), lam.double(), settings_of(case), **counts
    )
    loss.backward()
    return Result(loss.detach(), ntp.detach(), mixup.detach(), [x.grad for x in leaves if x is not None])


PLAIN = Case(
    pairs=5,
    unpaired=7,
    vocab=31,
    dim=8,
    lam="drawn",
    weights="1",
    equal_labels=False,
    repeated=False,
    tied=False,
    frozen=False,
    bias=True,
    scale=1.0,
    softcap=None,
    mu=0.2,
    by_mixed=False,
    form="full",
    smoothing=0.0,
    token_weight=None,
    power=1.0,
    chunk_tokens=8,
    seed=0,
)


def leaves(dtype=torch.float64, case=PLAIN):
    weight, bias, states, _, _, labels, weights, lam = inputs(case, dtype)
    return states, LMHead(weight, bias), labels, weights, lam


def loss_of(states, head, labels, weights, lam, **changed):
    counts = {name: changed.pop(name, default) for name, default in (("num_tokens", 20), ("num_mixed", 1000))}
    return fused_sftmix_loss(states, head, labels, weights, lam, LossSettings(**{"mu": 0.2, **changed}), **counts)


def test_a_hand_computed_case():
    """Logits (2, -2) and (0, 0), labels 0 and 1, lam 1/4: mixed logits (0.5, -0.5) against (1/4, 3/4)."""
    hidden = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    head = LMHead(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    one, lam = torch.ones(2, dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64)
    loss, ntp, mixup, _ = fused_sftmix_loss(
        hidden, head, torch.tensor([0, 1]), one, lam, LossSettings(mu=0.2), num_tokens=2, num_mixed=1
    )
    by_hand = math.log(1 + math.exp(-4)) + math.log(2)
    mixed = 0.25 * math.log(1 + math.exp(-1)) + 0.75 * math.log(1 + math.exp(1))
    assert ntp.item() == pytest.approx(by_hand, rel=1e-12)
    assert mixup.item() == pytest.approx(mixed, rel=1e-12)
    assert loss.item() == pytest.approx((by_hand + 0.2 * mixed) / 2, rel=1e-12)


def test_without_pairs_it_is_torchs_cross_entropy():
    states, head, labels, weights, _ = leaves()
    none = torch.zeros(0, dtype=torch.float64)
    loss, _, mixup, _ = loss_of(states, head, labels, weights, none, num_tokens=len(states))
    loss.backward()
    again, other, *_ = leaves()
    expected = F.cross_entropy(F.linear(again, other.weight, other.bias), labels)
    expected.backward()
    assert mixup.item() == 0.0
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in ((states, again), (head.weight, other.weight), (head.bias, other.bias)):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-13)


def test_gradients_match_finite_differences():
    """Along a random direction; torch's gradcheck would run backward twice."""
    states, head, labels, weights, lam = leaves()
    points = [states, head.weight, head.bias]
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in points]

    def loss(step):
        z, w, b = (p + step * d for p, d in zip(points, directions, strict=True))
        return loss_of(z, LMHead(w, b, 0.5, 2.0), labels, weights, lam, chunk_bytes=1).loss

    loss(0.0).backward()
    slope = sum((p.grad * d).sum() for p, d in zip(points, directions, strict=True)).item()
    assert slope == pytest.approx((loss(1e-5) - loss(-1e-5)).item() / 2e-5, rel=1e-7)


def test_logits_of_any_size_are_safe():
    states, head, labels, weights, lam = leaves(torch.float32)
    loss, *_ = loss_of(states * 1e4, head, labels, weights, lam)
    loss.backward()
    assert loss.isfinite()
    assert states.grad.isfinite().all()


def test_a_scaled_loss_scales_its_gradient():
    for upstream in (0.25, 65536.0):
        plain, scaled = (
            compute(PLAIN, torch.float64, fused=True),
            compute(PLAIN, torch.float64, fused=True, upstream=upstream),
        )
        for one, other in zip(plain.grads, scaled.grads, strict=True):
            torch.testing.assert_close(one * upstream, other, rtol=1e-12, atol=0)


def test_without_grad_the_same_sums_are_returned_and_nothing_is_kept(products_counter):
    arguments = leaves()
    want = loss_of(*arguments)
    with torch.no_grad(), products_counter() as products:
        got = loss_of(*arguments)
    assert not got.loss.requires_grad
    assert products.count == 1
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_and_summed_in_single_precision(dtype):
    half, single = leaves(dtype), leaves(dtype)
    single = (
        single[0].detach().float().requires_grad_(),
        LMHead(*(x.detach().float().requires_grad_() for x in single[1][:2])),
        *single[2:],
    )
    (loss, *_), (want, *_) = loss_of(*half), loss_of(*single)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=0)
    loss.backward()
    want.backward()
    for ours, theirs in ((half[0], single[0]), (half[1].weight, single[1].weight), (half[1].bias, single[1].bias)):
        assert ours.grad.dtype == dtype
        torch.testing.assert_close(ours.grad, theirs.grad.to(dtype), rtol=0, atol=0)


def test_autocast_changes_nothing_inside():
    arguments, again = leaves(torch.float32), leaves(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(*arguments).loss
    loss.backward()
    want = loss_of(*again).loss
    want.backward()
    assert torch.equal(loss, want)
    assert torch.equal(arguments[0].grad, again[0].grad)


def test_only_the_loss_carries_a_gradient():
    loss, ntp, mixup, _ = loss_of(*leaves())
    assert loss.requires_grad
    assert not ntp.requires_grad
    assert not mixup.requires_grad


def test_a_second_backward_is_refused():
    loss = loss_of(*leaves()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second one"):
        loss.backward()


def test_a_second_derivative_is_refused():
    states, *rest = leaves()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss_of(states, *rest).loss, states, create_graph=True)


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"num_tokens": 0}, "at least 1"), ({"num_mixed": 4}, "at least 5"), ({"mu": -1.0}, "mu=-1")],
)
def test_impossible_arguments_are_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        loss_of(*leaves(), **changed)


def test_more_pairs_than_tokens_are_refused():
    states, head, labels, weights, _ = leaves()
    with pytest.raises(ValueError, match="9 pairs need 18 hidden states, received 17"):
        loss_of(states, head, labels, weights, torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize(("num_pairs", "form"), [(0, "full"), *((20, form) for form in FORMS)])
@pytest.mark.parametrize("num_chunks", [1, 4])
def test_a_chunk_takes_three_matmuls_with_mixup_and_without(products_counter, num_pairs, form, num_chunks):
    case = PLAIN._replace(pairs=num_pairs, unpaired=64 - 2 * num_pairs, vocab=100)
    states, head, labels, weights, lam = leaves(torch.float32, case)
    with products_counter() as products:
        chunk_bytes = 64 // num_chunks * 100 * 4
        loss_of(states, head, labels, weights, lam, form=form, chunk_bytes=chunk_bytes).loss.backward()
    assert products.count == 3 * num_chunks


def test_the_logits_of_all_tokens_never_exist_at_once(products_counter):
    """The largest tensor is the logits of a chunk or the gradient of the head."""
    case = PLAIN._replace(pairs=100, unpaired=200, vocab=500, dim=4)
    arguments = leaves(torch.float32, case)
    chunk_bytes = 40 * 500 * 4
    with products_counter() as products:
        loss_of(*arguments, chunk_bytes=chunk_bytes).loss.backward()
    assert products.largest <= chunk_bytes + 2 * 500 * 4
    assert products.largest < 400 * 500 * 4 / 9
    with products_counter() as products:
        fused_token_nll(arguments[0], arguments[1], arguments[2], chunk_bytes=chunk_bytes)
    assert products.largest <= chunk_bytes


def test_the_size_of_a_chunk_is_set_in_bytes():
    assert tokens_per_chunk(torch.empty(32000, 1), None) == 2**27 // (32000 * 4)
    assert tokens_per_chunk(torch.empty(32000, 4096, device="meta"), 2**26) == 2**26 // (32000 * 4)
    assert tokens_per_chunk(torch.empty(1000, 4), 1) == 8


@given(cases)
def test_token_nll_equals_the_dense_equations(case):
    weight, bias, states, _, order, labels, *_ = inputs(case, torch.float64)
    head = LMHead(weight, bias, case.scale, case.softcap)
    got = fused_token_nll(states[order], head, labels, chunk_bytes=case.chunk_tokens * case.vocab * 8)
    torch.testing.assert_close(got, token_nll(states[order], head, labels).detach(), rtol=1e-12, atol=1e-12)
