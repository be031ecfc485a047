"""The linearity gap: its limits, its fixed point, and a dense equation written here."""

import math

import pytest
import torch

from sftmix.evaluation.offline.linearity import label_entropy, linearity_gap
from sftmix.functional.equations import LMHead

LAMS = (0.1, 0.5, 0.9)


@pytest.fixture
def ends():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 30, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(9, (2, 30), generator=generator)
    head = LMHead(torch.randn(9, 6, generator=generator, dtype=torch.float64))
    return hidden[0], hidden[1], head, labels[0], labels[1]


def test_it_equals_the_dense_equation(ends):
    z_c, z_u, head, y_c, y_u = ends
    found = linearity_gap(*ends, LAMS)

    def cross_entropy(z, target):
        return -(target * torch.log_softmax(z @ head.weight.T, -1)).sum(-1)

    one_hot = torch.eye(9, dtype=torch.float64)
    for lam, gap in zip(LAMS, found, strict=True):
        mixed = cross_entropy(lam * z_c + (1 - lam) * z_u, lam * one_hot[y_c] + (1 - lam) * one_hot[y_u])
        alone = lam * cross_entropy(z_c, one_hot[y_c]) + (1 - lam) * cross_entropy(z_u, one_hot[y_u])
        torch.testing.assert_close(gap, mixed - alone)


def test_it_is_zero_at_both_ends(ends):
    torch.testing.assert_close(linearity_gap(*ends, (0.0, 1.0)), torch.zeros(2, 30, dtype=torch.float64))


def test_it_is_zero_for_a_pair_of_equals(ends):
    z, _, head, y, _ = ends
    torch.testing.assert_close(linearity_gap(z, z, head, y, y, LAMS), torch.zeros(3, 30, dtype=torch.float64))


def test_it_is_the_same_with_the_ends_exchanged(ends):
    z_c, z_u, head, y_c, y_u = ends
    torch.testing.assert_close(linearity_gap(*ends, (0.2,)), linearity_gap(z_u, z_c, head, y_u, y_c, (0.8,)))


def test_of_equal_labels_mixing_costs_nothing_more_than_its_ends(ends):
    z_c, z_u, head, y, _ = ends
    assert (linearity_gap(z_c, z_u, head, y, y, LAMS) <= 1e-12).all()  # -log softmax is convex in the hidden state


def test_a_model_that_is_sure_of_both_ends_has_a_gap_of_at_least_the_labels_entropy():
    head = LMHead(100 * torch.eye(2, dtype=torch.float64))
    z = torch.eye(2, dtype=torch.float64)
    labels = torch.arange(2)
    gap = linearity_gap(z[:1], z[1:], head, labels[:1], labels[1:], (0.5,))
    assert gap.item() == pytest.approx(math.log(2))
    assert label_entropy(labels[:1] == labels[1:], 0.5).item() == pytest.approx(math.log(2))


def test_the_entropy_of_the_mixed_label_is_that_of_its_two_tokens():
    found = label_entropy(torch.tensor([True, False]), 0.1).tolist()
    assert found == pytest.approx([0.0, -0.1 * math.log(0.1) - 0.9 * math.log(0.9)])
    assert label_entropy(torch.tensor([False]), 1.0).tolist() == [0.0]


def test_chunks_change_nothing(ends):
    torch.testing.assert_close(linearity_gap(*ends, LAMS), linearity_gap(*ends, LAMS, chunk_bytes=1))


def test_nothing_mixed_gives_nothing(ends):
    z_c, z_u, head, y_c, y_u = ends
    assert linearity_gap(z_c[:0], z_u[:0], head, y_c[:0], y_u[:0], LAMS).shape == (3, 0)
