"""NEFTune's noise: its bound and its size by hand, and torch's own draws."""

import pytest
import torch

from sftmix.functional.noise import neftune_noise


def drawn(num_tokens, dim, alpha, seed=0):
    return neftune_noise(num_tokens, dim, alpha=alpha, generator=torch.Generator().manual_seed(seed))


def test_the_noise_is_torchs_uniform_draw_times_alpha_over_the_root_of_l_times_d():
    """By hand: L = 4 tokens of width 9, alpha 3: 3 / sqrt(36) = 1/2."""
    uniform = torch.empty(4, 9).uniform_(-1, 1, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(drawn(4, 9, 3.0, seed=7), uniform / 2)


@pytest.mark.parametrize(("num_tokens", "dim", "alpha"), [(1, 4096, 5.0), (512, 64, 15.0), (50, 1000, 0.1)])
def test_no_value_is_above_the_bound_and_the_norm_is_alpha_over_the_root_of_three(num_tokens, dim, alpha):
    noise = drawn(num_tokens, dim, alpha)
    bound = alpha / (num_tokens * dim) ** 0.5
    assert noise.shape == (num_tokens, dim)
    assert 0.99 * bound < noise.abs().max() <= bound
    assert noise.norm().item() == pytest.approx(alpha / 3**0.5, rel=0.02)
    assert abs(noise.mean().item()) < 0.05 * bound


def test_the_noise_depends_only_on_the_generator():
    assert torch.equal(drawn(3, 5, 5.0), drawn(3, 5, 5.0))
    assert not torch.equal(drawn(3, 5, 5.0), drawn(3, 5, 5.0, seed=1))
