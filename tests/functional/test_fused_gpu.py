"""The fused loss on a GPU: half-precision matmuls with single-precision sums, and no waiting for the device."""

import pytest
import torch

from sftmix.functional.equations import LMHead, LossSettings, dense_sftmix_loss
from sftmix.functional.fused import fused_sftmix_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def inputs(dtype, num_tokens=300, vocab=5000, dim=256, pairs=100):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(num_tokens, dim, generator=generator, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(vocab, dim, generator=generator, device="cuda") / 16).to(dtype).requires_grad_()
    labels = torch.randint(vocab, (num_tokens,), generator=generator, device="cuda")
    lam = torch.rand(pairs, generator=generator, device="cuda")
    return hidden, weight, labels, torch.ones(num_tokens, device="cuda"), lam


@pytest.mark.parametrize(
    ("dtype", "of_loss", "of_gradients"), [(torch.float32, 1e-5, 1e-4), (torch.bfloat16, 1e-4, 2e-2)]
)
def test_it_equals_the_dense_equations(dtype, of_loss, of_gradients):
    hidden, weight, labels, weights, lam = inputs(dtype)
    settings = LossSettings(mu=0.2, chunk_bytes=100 * 5000 * 4)
    loss = fused_sftmix_loss(hidden, LMHead(weight), labels, weights, lam, settings, num_tokens=300, num_mixed=100).loss
    loss.backward()
    z, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    counts = {"num_tokens": 300, "num_mixed": 100}
    expected = dense_sftmix_loss(z, LMHead(w), labels, weights.double(), lam.double(), LossSettings(mu=0.2), **counts)
    expected.loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.loss.item(), rel=of_loss)
    for got, want in ((hidden.grad, z.grad), (weight.grad, w.grad)):
        assert ((got.double() - want).abs().max() / want.abs().max()).item() <= of_gradients


def test_the_device_is_never_waited_for():
    hidden, weight, labels, weights, lam = inputs(torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        settings, counts = LossSettings(mu=0.2), {"num_tokens": 300, "num_mixed": 100}
        fused_sftmix_loss(hidden, LMHead(weight), labels, weights, lam, settings, **counts).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
