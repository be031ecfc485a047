"""Calibration and the linearity gap: by hand, in limit cases, against dense equations, and in chunks of any size."""

import math

import pytest
import torch

from sftmix.evaluation.offline.metrics import Prediction, calibration_error, label_entropy, linearity_gap, predict
from sftmix.functional.equations import LMHead

PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.25, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])


def of_probabilities(probabilities, labels):
    """Predictions of a head that is the identity: hidden states are the logits."""
    vocab = probabilities.shape[1]
    return predict(probabilities.log(), LMHead(torch.eye(vocab, dtype=probabilities.dtype)), labels)


def with_top(top, is_correct):
    nothing = torch.zeros(len(top))
    return Prediction(nothing, torch.tensor(top), torch.tensor(is_correct), nothing, nothing)


def test_a_prediction_is_what_is_computed_by_hand():
    found = of_probabilities(PROBABILITIES, LABELS)
    assert found.nll.tolist() == pytest.approx([-math.log(p) for p in (0.7, 0.3, 0.5)])
    assert found.top_probability.tolist() == pytest.approx([0.7, 0.6, 0.5])
    assert found.is_correct.tolist() == [True, False, True]
    by_hand = [0.3**2 + 0.2**2 + 0.1**2, 0.1**2 + 0.7**2 + 0.6**2, 0.25**2 + 0.25**2 + 0.5**2]
    assert found.brier.tolist() == pytest.approx(by_hand)
    entropies = [-sum(p * math.log(p) for p in row) for row in PROBABILITIES.tolist()]
    assert found.entropy.tolist() == pytest.approx(entropies)


def test_a_sure_and_right_model_has_no_brier_score_and_a_sure_and_wrong_one_has_two():
    sure = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])  # logits; a probability of exactly 0
    found = predict(sure, LMHead(torch.eye(2)), torch.tensor([0, 1]))
    assert found.brier.tolist() == [0.0, 2.0]
    assert found.entropy.tolist() == [0.0, 0.0]


def test_the_calibration_error_is_what_is_computed_by_hand():
    # two bins: [0, 0.5] holds 0.3 and 0.4, one of them right; (0.5, 1] holds 0.9, 0.8, 0.7, all right
    found = calibration_error(with_top([0.3, 0.4, 0.9, 0.8, 0.7], [True, False, True, True, True]), num_bins=2)
    assert found == pytest.approx(2 / 5 * abs(0.5 - 0.35) + 3 / 5 * abs(1 - 0.8), abs=1e-6)


def test_the_calibration_error_equals_bins_counted_one_by_one():
    generator = torch.Generator().manual_seed(0)
    top = torch.rand(500, generator=generator)
    is_correct = torch.rand(500, generator=generator) < top.square()
    expected = 0.0
    for k in range(15):
        here = (top > k / 15) & (top <= (k + 1) / 15)
        if here.any():
            expected += here.float().mean() * abs(is_correct[here].float().mean() - top[here].mean())
    assert calibration_error(with_top(top.tolist(), is_correct.tolist()), 15) == pytest.approx(
        float(expected), abs=1e-5
    )


def test_a_probability_above_one_by_rounding_is_no_logit():
    assert calibration_error(with_top([1.0000001, 1.0], [True, True]), 15) == 0.0


def test_chunks_change_nothing():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 6, generator=generator), torch.randn(11, 6, generator=generator)
    labels = torch.randint(11, (40,), generator=generator)
    whole, cut = (predict(hidden, LMHead(weight, softcap=5.0), labels, chunk_bytes=size) for size in (None, 11 * 4 * 9))
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other)


def test_no_logits_larger_than_a_chunk_are_held(products_counter):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(640, 4, generator=generator), torch.randn(1000, 4, generator=generator)
    with products_counter() as counter:
        predict(hidden, LMHead(weight), torch.zeros(640, dtype=torch.long), chunk_bytes=16 * 1000 * 4)
    assert counter.largest == 16 * 1000 * 4


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


def test_chunks_change_no_gap(ends):
    torch.testing.assert_close(linearity_gap(*ends, LAMS), linearity_gap(*ends, LAMS, chunk_bytes=1))


def test_nothing_mixed_gives_nothing(ends):
    z_c, z_u, head, y_c, y_u = ends
    assert linearity_gap(z_c[:0], z_u[:0], head, y_c[:0], y_u[:0], LAMS).shape == (3, 0)
