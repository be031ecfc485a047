"""Steps 2 and 3 and Appendix A: interpolation, the Mixup loss, the loss of a step, the gradient at the head."""

import math

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from sftmix.functional.gradient import mixup_head_gradient
from sftmix.functional.head import LMHead
from sftmix.functional.mixup import interpolate, mixed_labels, mixup_cross_entropy, num_mixed_tokens
from sftmix.functional.objective import mixup_sum, ntp_sum, sftmix_loss

ROWS, DIM, VOCAB = 6, 5, 9


@pytest.fixture
def batch():
    """Six rows: a confident response of two tokens, an unconfident one of three, and a partnerless token."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(VOCAB, (ROWS,), generator=generator)
    return hidden, LMHead(weight), labels


def pairs(lam: float) -> torch.Tensor:
    """Rows 0 and 1 meet rows 2 and 3."""
    return torch.full((2,), lam, dtype=torch.float64)


def test_a_hand_computed_case():
    """Hidden states 2 and 0, W = (1, -1), labels 0 and 1, lam 1/4: z~ = 0.5, logits (0.5, -0.5), y~ = (1/4, 3/4)."""
    hidden = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    head = LMHead(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    meet = torch.tensor([0.25], dtype=torch.float64)
    by_hand = 0.25 * math.log(1 + math.exp(-1)) + 0.75 * math.log(1 + math.exp(1))
    assert mixup_sum(hidden, head, torch.tensor([0, 1]), meet).item() == pytest.approx(by_hand, rel=1e-12)


def test_lam_one_is_the_loss_of_the_confident_and_lam_zero_of_the_unconfident(batch):
    hidden, head, labels = batch
    nll = F.cross_entropy(hidden @ head.weight.T, labels, reduction="none")
    torch.testing.assert_close(mixup_sum(hidden, head, labels, pairs(1.0)), nll[[0, 1]].sum())
    torch.testing.assert_close(mixup_sum(hidden, head, labels, pairs(0.0)), nll[[2, 3]].sum())


def test_changing_sides_with_one_minus_lam_changes_nothing(batch):
    hidden, head, labels = batch
    back = [2, 3, 0, 1]
    torch.testing.assert_close(
        mixup_sum(hidden, head, labels, pairs(0.3)), mixup_sum(hidden[back], head, labels[back], pairs(0.7))
    )


def test_a_pair_of_equals_is_a_fixed_point(batch):
    hidden, head, labels = batch
    same, lam = [0, 1, 0, 1], torch.tensor([0.3, 0.8], dtype=torch.float64)
    expected = F.cross_entropy(hidden[:2] @ head.weight.T, labels[:2], reduction="sum")
    torch.testing.assert_close(mixup_sum(hidden[same], head, labels[same], lam), expected)


def test_the_mixup_loss_agrees_with_torchs_soft_label_cross_entropy(batch):
    hidden, head, labels = batch
    meet = pairs(0.3)
    mixed = 0.3 * hidden[:2] + 0.7 * hidden[2:4]
    soft = 0.3 * F.one_hot(labels[:2], VOCAB).double() + 0.7 * F.one_hot(labels[2:4], VOCAB).double()
    expected = F.cross_entropy(mixed @ head.weight.T, soft, reduction="sum")
    torch.testing.assert_close(mixup_sum(hidden, head, labels, meet), expected)


def test_the_soft_cap_comes_after_the_interpolation(batch):
    hidden, head, labels = batch
    capped = LMHead(head.weight, softcap=1.5)
    mixed = 0.3 * hidden[:2] + 0.7 * hidden[2:4]
    soft = 0.3 * F.one_hot(labels[:2], VOCAB).double() + 0.7 * F.one_hot(labels[2:4], VOCAB).double()
    expected = F.cross_entropy(1.5 * torch.tanh(mixed @ head.weight.T / 1.5), soft, reduction="sum")
    torch.testing.assert_close(mixup_sum(hidden, capped, labels, pairs(0.3)), expected)


def test_no_pairs_add_nothing(batch):
    hidden, head, labels = batch
    assert mixup_sum(hidden, head, labels, torch.zeros(0).double()).item() == 0.0


def test_rows_of_weight_zero_get_no_gradient_from_next_token_prediction(batch):
    hidden, head, labels = batch
    hidden.requires_grad_()
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]).double()
    ntp_sum(hidden, head, labels, weights).backward()
    assert (hidden.grad[2:5] == 0).all()
    assert (hidden.grad[[0, 1, 5]].abs().sum(-1) > 0).all()


def test_a_row_outside_the_pairs_gets_no_gradient_from_mixup(batch):
    hidden, head, labels = batch
    hidden.requires_grad_()
    mixup_sum(hidden, head, labels, pairs(0.4)).backward()
    assert (hidden.grad[4:] == 0).all()
    assert (hidden.grad[:4].abs().sum(-1) > 0).all()


def test_a_row_of_weight_zero_still_enters_its_pair(batch):
    hidden, head, labels = batch
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]).double()
    hidden.requires_grad_()
    loss = sftmix_loss(
        ntp_sum(hidden, head, labels, weights), mixup_sum(hidden, head, labels, pairs(0.4)), mu=0.2, num_tokens=6
    )
    loss.backward()
    assert (hidden.grad[2:4].abs().sum(-1) > 0).all()


def test_gradients_match_finite_differences(batch):
    hidden, head, labels = batch
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0]).double()

    def loss(z, w):
        around = LMHead(w, softcap=2.0)
        mix = mixup_sum(z, around, labels, pairs(0.3))
        return sftmix_loss(ntp_sum(z, around, labels, weights), mix, mu=0.5, num_tokens=6)

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), head.weight.requires_grad_()))


def test_mu_zero_is_next_token_prediction():
    ntp, mix = torch.tensor(12.0), torch.tensor(5.0)
    assert sftmix_loss(ntp, mix, mu=0.0, num_tokens=4).item() == 3.0
    assert sftmix_loss(ntp, mix, mu=0.2, num_tokens=4).item() == pytest.approx((12 + 0.2 * 5) / 4)
    assert sftmix_loss(ntp, mix, mu=0.2, num_tokens=4, mixup_denominator=2).item() == pytest.approx(3 + 0.2 * 2.5)


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"num_tokens": 0}, "at least 1"), ({"mixup_denominator": 0}, "at least 1"), ({"mu": -1.0}, "mu")],
)
def test_impossible_normalizers_are_refused(changed, says):
    with pytest.raises(ValueError, match=says):
        sftmix_loss(torch.tensor(1.0), torch.tensor(1.0), **{"mu": 0.2, "num_tokens": 4, **changed})


def test_a_pair_is_mixed_over_the_shorter_response():
    assert (num_mixed_tokens(3, 8), num_mixed_tokens(8, 3), num_mixed_tokens(4, 4)) == (3, 3, 4)


def test_mixed_labels_sum_to_one_even_where_both_labels_agree():
    lam = torch.tensor([0.3, 0.6], dtype=torch.float64)
    soft = mixed_labels(torch.tensor([1, 2]), torch.tensor([1, 0]), lam, 3)
    assert soft.tolist() == [[0.0, 1.0, 0.0], [0.4, 0.0, 0.6]]


def test_appendix_a_is_what_autograd_computes(batch):
    hidden, head, labels = batch
    lam = torch.tensor([0.3], dtype=torch.float64)
    mixed = interpolate(hidden[:1], hidden[2:3], lam)
    soft = mixed_labels(labels[:1], labels[2:3], lam, VOCAB)
    weight = head.weight.clone().requires_grad_()
    mixup_cross_entropy(mixed, LMHead(weight), soft).sum().backward()
    torch.testing.assert_close(mixup_head_gradient(mixed[0], head.weight, soft[0]), weight.grad)


def test_appendix_a_is_no_weighted_sum_of_the_two_ntp_gradients(batch):
    hidden, head, labels = batch
    lam = torch.tensor([0.3], dtype=torch.float64)
    soft = mixed_labels(labels[:1], labels[2:3], lam, VOCAB)
    of_the_mixture = mixup_head_gradient(interpolate(hidden[:1], hidden[2:3], lam)[0], head.weight, soft[0])
    confident = mixup_head_gradient(hidden[0], head.weight, F.one_hot(labels[0], VOCAB).double())
    unconfident = mixup_head_gradient(hidden[2], head.weight, F.one_hot(labels[2], VOCAB).double())
    # no weights at all, the best ones included, make the sum of the two gradients equal to it
    basis = torch.stack([confident.flatten(), unconfident.flatten()], dim=1)
    best = torch.linalg.lstsq(basis, of_the_mixture.flatten().unsqueeze(-1))
    residual = (basis @ best.solution).squeeze() - of_the_mixture.flatten()
    assert residual.norm() > 0.1 * of_the_mixture.norm()


def test_shapes_are_held_to_their_word():
    with pytest.raises(jaxtyping.TypeCheckError):
        interpolate(torch.randn(2, 3), torch.randn(4, 3), torch.rand(2))
