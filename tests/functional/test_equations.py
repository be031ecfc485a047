"""The dense equations: head, NTP with its options, interpolation, the Mixup loss, the loss of a step, Appendix A."""

import math

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from sftmix.functional.equations import (
    TOKEN_WEIGHTS,
    LMHead,
    LossSettings,
    TokenWeight,
    dense_sftmix_loss,
    dro_weights,
    interpolate,
    mixed_labels,
    mixup_cross_entropy,
    mixup_head_gradient,
    mixup_parts,
    mixup_sum,
    ntp_sum,
    num_mixed_tokens,
    softmax_distance,
    token_nll,
)

TOKENS, DIM, VOCAB = 6, 5, 9


@pytest.fixture
def batch():
    """Six tokens: two confident ones, their two partners, and two unpaired tokens."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, DIM, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(VOCAB, (TOKENS,), generator=generator)
    return hidden, LMHead(weight), labels


def pairs(lam: float) -> torch.Tensor:
    """Tokens 0 and 1 are paired with tokens 2 and 3."""
    return torch.full((2,), lam, dtype=torch.float64)


def test_token_nll_agrees_with_torch():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(7, 5).double(), torch.randn(11, 5).double(), torch.randint(11, (7,))
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    torch.testing.assert_close(token_nll(hidden, LMHead(weight), labels), expected, rtol=1e-12, atol=1e-12)


def test_a_bias_a_scale_and_a_soft_cap_reach_the_logits():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(3, 4).double(), torch.randn(6, 4).double(), torch.randn(6).double()
    raw = hidden @ weight.T * 0.5 + bias
    labels = torch.tensor([0, 5, 2])
    expected = F.cross_entropy(2.0 * torch.tanh(raw / 2.0), labels, reduction="none")
    torch.testing.assert_close(token_nll(hidden, LMHead(weight, bias, 0.5, 2.0), labels), expected)


def test_a_hand_computed_case():
    """Hidden states 2 and 0, W = (1, -1), labels 0 and 1, lam 1/4: z~ = 0.5, logits (0.5, -0.5), y~ = (1/4, 3/4)."""
    hidden = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    head = LMHead(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    lam = torch.tensor([0.25], dtype=torch.float64)
    by_hand = 0.25 * math.log(1 + math.exp(-1)) + 0.75 * math.log(1 + math.exp(1))
    assert mixup_sum(hidden, head, torch.tensor([0, 1]), lam).item() == pytest.approx(by_hand, rel=1e-12)


def test_lam_one_is_the_loss_of_the_confident_and_lam_zero_of_the_unconfident(batch):
    hidden, head, labels = batch
    nll = F.cross_entropy(hidden @ head.weight.T, labels, reduction="none")
    torch.testing.assert_close(mixup_sum(hidden, head, labels, pairs(1.0)), nll[[0, 1]].sum())
    torch.testing.assert_close(mixup_sum(hidden, head, labels, pairs(0.0)), nll[[2, 3]].sum())


def test_swapped_partners_with_one_minus_lam_give_the_same_loss(batch):
    hidden, head, labels = batch
    back = [2, 3, 0, 1]
    torch.testing.assert_close(
        mixup_sum(hidden, head, labels, pairs(0.3)), mixup_sum(hidden[back], head, labels[back], pairs(0.7))
    )


def test_a_pair_of_equal_tokens_has_the_loss_of_one(batch):
    hidden, head, labels = batch
    same, lam = [0, 1, 0, 1], torch.tensor([0.3, 0.8], dtype=torch.float64)
    expected = F.cross_entropy(hidden[:2] @ head.weight.T, labels[:2], reduction="sum")
    torch.testing.assert_close(mixup_sum(hidden[same], head, labels[same], lam), expected)


def test_the_mixup_loss_agrees_with_torchs_soft_label_cross_entropy(batch):
    hidden, head, labels = batch
    mixed = 0.3 * hidden[:2] + 0.7 * hidden[2:4]
    soft = 0.3 * F.one_hot(labels[:2], VOCAB).double() + 0.7 * F.one_hot(labels[2:4], VOCAB).double()
    expected = F.cross_entropy(mixed @ head.weight.T, soft, reduction="sum")
    torch.testing.assert_close(mixup_sum(hidden, head, labels, pairs(0.3)), expected)


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


def test_tokens_of_weight_zero_get_no_gradient_from_next_token_prediction(batch):
    hidden, head, labels = batch
    hidden.requires_grad_()
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]).double()
    ntp_sum(hidden, head, labels, weights).backward()
    assert (hidden.grad[2:5] == 0).all()
    assert (hidden.grad[[0, 1, 5]].abs().sum(-1) > 0).all()


def test_an_unpaired_token_gets_no_gradient_from_mixup(batch):
    hidden, head, labels = batch
    hidden.requires_grad_()
    mixup_sum(hidden, head, labels, pairs(0.4)).backward()
    assert (hidden.grad[4:] == 0).all()
    assert (hidden.grad[:4].abs().sum(-1) > 0).all()


def test_a_token_of_weight_zero_still_enters_its_pair(batch):
    hidden, head, labels = batch
    weights = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]).double()
    hidden.requires_grad_()
    loss_of((hidden, head, labels), weights=weights, lam=pairs(0.4)).loss.backward()
    assert (hidden.grad[2:4].abs().sum(-1) > 0).all()


def test_gradients_match_finite_differences(batch):
    hidden, head, labels = batch
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0]).double()

    def loss(z, w):
        return loss_of((z, LMHead(w, softcap=2.0), labels), weights=weights, mu=0.5).loss

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), head.weight.requires_grad_()))


def loss_of(batch, *, weights=None, lam=None, num_tokens=6, num_mixed=2, **settings):
    hidden, head, labels = batch
    weights = torch.ones(TOKENS).double() if weights is None else weights
    lam, settings = pairs(0.3) if lam is None else lam, LossSettings(**{"mu": 0.2, **settings})
    return dense_sftmix_loss(hidden, head, labels, weights, lam, settings, num_tokens=num_tokens, num_mixed=num_mixed)


def test_the_loss_is_the_weighted_sum_of_both_terms_over_n(batch):
    hidden, head, labels = batch
    ntp = F.cross_entropy(hidden @ head.weight.T, labels, reduction="sum").item()
    mixup = mixup_sum(hidden, head, labels, pairs(0.3)).item()
    assert loss_of(batch, mu=0.0, num_tokens=4).loss.item() == pytest.approx(ntp / 4)
    assert loss_of(batch, num_tokens=4)[:3] == pytest.approx(((ntp + 0.2 * mixup) / 4, ntp, mixup))
    of_mixed = loss_of(batch, num_tokens=4, num_mixed=3, normalize_by="mixed_tokens").loss.item()
    assert of_mixed == pytest.approx(ntp / 4 + 0.2 * mixup / 3)
    assert loss_of(batch, mu=None, num_tokens=4)[:3] == pytest.approx((ntp / 4, ntp, 0.0))


def test_a_step_without_pairs_is_divided_by_one_instead_of_zero(batch):
    loss = loss_of(batch, lam=pairs(0.3)[:0], num_mixed=0, normalize_by="mixed_tokens")
    assert loss.loss.item() == pytest.approx(loss_of(batch, mu=None).loss.item())


def test_only_the_loss_carries_a_gradient(batch):
    hidden, *rest = batch
    loss, ntp, mixup, _ = loss_of((hidden.requires_grad_(), *rest))
    assert loss.requires_grad
    assert not ntp.requires_grad
    assert not mixup.requires_grad


def test_half_precision_is_computed_in_single_precision_also_under_autocast(batch):
    hidden, head, labels = batch
    half = (hidden.bfloat16(), LMHead(head.weight.bfloat16(), torch.zeros(VOCAB).bfloat16()), labels)
    single = (half[0].float(), LMHead(half[1].weight.float()), labels)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss_of(half)
    assert got.loss.dtype == torch.float32
    torch.testing.assert_close(got, loss_of(single), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_tokens": 0}, "num_tokens=0: .* at least 1"),
        ({"num_mixed": 1}, "num_mixed=1: expected at least 2"),
        ({"lam": torch.ones(4).double(), "num_mixed": 4}, "4 pairs need 8 hidden states, received 6"),
        ({"mu": -1.0}, "mu=-1.0: expected a number of at least 0"),
        ({"mu": math.nan}, "mu=nan: expected a number of at least 0"),
        ({"normalize_by": "pairs"}, "normalize_by=pairs: expected tokens or mixed_tokens"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0: expected at least 0 and less than 1"),
        ({"form": "half"}, "form=half: expected one of full, reweight, labels"),
        ({"token_weight_power": 0.0}, "token_weight_power=0.0: expected above 0"),
        ({"dro_temperature": 0.0}, "dro_temperature=0.0: expected above 0"),
        ({"dro_losses": "epoch"}, "dro_losses=epoch: expected one of step, previous_epoch"),
        ({"dro_losses": "previous_epoch"}, "dro_losses=previous_epoch: expected step without a temperature"),
        ({"token_weight": "luck"}, "token_weight=luck: expected one of dft, eaft"),
        ({"implementation": "sparse"}, "implementation=sparse: expected fused or dense"),
        ({"chunk_bytes": 0}, "chunk_bytes=0: expected at least 1"),
        ({"chunk_bytes": 9, "implementation": "dense"}, "chunk_bytes=9: .* only with implementation=fused"),
    ],
)
def test_impossible_settings_and_counts_are_refused(batch, changed, message):
    with pytest.raises(ValueError, match=message):
        loss_of(batch, **changed)


def test_label_smoothing_is_that_of_torch(batch):
    hidden, head, labels = batch
    expected = F.cross_entropy(hidden @ head.weight.T, labels, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(loss_of(batch, label_smoothing=0.1).ntp, expected)


def test_a_token_weight_is_a_factor_without_a_gradient(batch):
    """Of dynamic fine-tuning: d(-p log p) would be another gradient than p d(-log p)."""
    hidden, head, labels = batch
    hidden.requires_grad_()
    nll = token_nll(hidden, head, labels)
    probability = torch.softmax(hidden @ head.weight.T, -1).gather(1, labels[:, None]).squeeze(1).detach()
    (expected,) = torch.autograd.grad((probability * nll).sum(), hidden)
    got = loss_of(batch, token_weight="dft", mu=None, num_tokens=1)
    torch.testing.assert_close(got.loss, (probability * nll).sum())
    torch.testing.assert_close(torch.autograd.grad(got.loss, hidden)[0], expected)


def test_a_token_weight_receives_the_entropy_if_it_uses_it(batch, monkeypatch):
    hidden, head, labels = batch
    expected = torch.distributions.Categorical(logits=hidden @ head.weight.T).entropy()
    monkeypatch.setitem(TOKEN_WEIGHTS, "entropy", TokenWeight(lambda nll, entropy: entropy + 0 * nll, VOCAB))
    nll = token_nll(hidden, head, labels)
    torch.testing.assert_close(loss_of(batch, token_weight="entropy").ntp, (expected * nll).sum())


def test_eaft_weighs_by_the_entropy_of_the_twenty_most_probable_tokens_over_three():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(4, 3).double(), torch.randn(50, 3).double(), torch.randint(50, (4,))
    logits = hidden @ weight.T
    entropy = torch.stack(
        [torch.distributions.Categorical(logits=z.sort(descending=True).values[:20]).entropy() for z in logits]
    )
    nll = F.cross_entropy(logits, labels, reduction="none")
    head, one = LMHead(weight), torch.ones(4).double()
    for power in (1.0, 0.5):
        got = ntp_sum(hidden, head, labels, one, token_weight=TOKEN_WEIGHTS["eaft"], token_weight_power=power)
        torch.testing.assert_close(got, ((entropy / 3) ** power * nll).sum(), rtol=1e-12, atol=0)


def test_the_weights_of_ir_dro_are_a_softmax_of_the_losses_of_the_examples_that_are_learned():
    losses, learned = torch.tensor([1.0, 3.0, 2.0, 9.0]).double(), torch.tensor([True, True, True, False])
    weights = dro_weights(losses, learned, 0.5)
    by_hand = [math.exp(2 * loss) for loss in (1.0, 3.0, 2.0)]
    assert weights.tolist() == pytest.approx([x / sum(by_hand) for x in by_hand] + [0.0], rel=1e-12)
    assert dro_weights(losses, learned, 1e9).tolist() == pytest.approx([1 / 3] * 3 + [0.0], rel=1e-8)
    assert dro_weights(losses, ~learned & learned, 1.0).tolist() == [0.0] * 4
    assert dro_weights(losses * 1e3, learned, 1e-3).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_a_pair_is_mixed_over_the_shorter_response():
    assert (num_mixed_tokens(3, 8), num_mixed_tokens(8, 3), num_mixed_tokens(4, 4)) == (3, 3, 4)


def test_mixed_labels_sum_to_one_even_where_both_labels_agree():
    lam = torch.tensor([0.3, 0.6], dtype=torch.float64)
    soft = mixed_labels(torch.tensor([1, 2]), torch.tensor([1, 0]), lam, 3)
    assert soft.tolist() == [[0.0, 1.0, 0.0], [0.4, 0.0, 0.6]]


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_forms_of_mixup_are_sums_of_cross_entropies_of_the_two_tokens(batch, softcap):
    """By torch: each token against its own label, and against the label of its partner."""
    hidden, head, labels = batch
    raw = hidden @ head.weight.T
    z = raw if softcap is None else softcap * torch.tanh(raw / softcap)
    lam = torch.tensor([0.3, 0.8], dtype=torch.float64)
    reweighting = (lam**2 * F.cross_entropy(z[:2], labels[:2], reduction="none")).sum()
    reweighting += ((1 - lam) ** 2 * F.cross_entropy(z[2:4], labels[2:4], reduction="none")).sum()
    swapped = F.cross_entropy(z[:2], labels[2:4], reduction="none") + F.cross_entropy(
        z[2:4], labels[:2], reduction="none"
    )
    smoothing = (lam * (1 - lam) * swapped).sum()
    head = head._replace(softcap=softcap)
    for form, expected in (("reweight", reweighting), ("labels", reweighting + smoothing)):
        got = loss_of((hidden, head, labels), lam=lam, form=form)
        torch.testing.assert_close(got.mixup, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(got.loss, (got.ntp + 0.2 * expected) / 6, rtol=1e-12, atol=0)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_the_mixup_loss_is_reweighting_plus_smoothing_minus_the_gap(batch, lam):
    hidden, head, labels = batch
    head = head._replace(bias=torch.randn(VOCAB, dtype=torch.float64), scale=0.7)
    parts = mixup_parts(hidden, head, labels, pairs(lam))
    for k in range(2):
        loss = mixup_sum(hidden[[k, k + 2]], head, labels[[k, k + 2]], pairs(lam)[:1])
        assert (parts.reweighting + parts.smoothing - parts.gap)[k].item() == pytest.approx(loss.item(), abs=1e-12)
    raw = F.linear(hidden, head.weight) * head.scale + head.bias
    mixed = lam * raw[:2] + (1 - lam) * raw[2:4]
    jensen = lam * raw[:2].logsumexp(1) + (1 - lam) * raw[2:4].logsumexp(1) - mixed.logsumexp(1)
    torch.testing.assert_close(parts.gap, jensen, atol=1e-12, rtol=0)
    if lam in (0.0, 1.0):
        assert parts.gap.abs().max() < 1e-12
        assert not parts.smoothing.any()
    else:
        assert parts.gap.min() > 1e-3


def test_a_pair_of_equal_tokens_has_no_gap_and_no_distance(batch):
    hidden, head, labels = batch
    hidden = torch.cat((hidden[:2], hidden[:2]))
    assert mixup_parts(hidden, head, labels[:4], pairs(0.3)).gap.abs().max() < 1e-12
    assert softmax_distance(hidden, head, pairs(0.3)).max() < 1e-12


def test_a_soft_cap_has_no_parts(batch):
    hidden, head, labels = batch
    with pytest.raises(ValueError, match=r"softcap=5\.0: expected a head without soft cap"):
        mixup_parts(hidden, head._replace(softcap=5.0), labels, pairs(0.3))


def test_the_softmax_distance_of_a_hand_computed_case():
    """Logits (log 9, 0) and (0, log 9): predictions (.9, .1) and (.1, .9). With lam = 3/4 the mixed logits are
    (3/4 log 9, 1/4 log 9), so the prediction is 3 / (1 + 3) = .75; the mixed prediction is .75 * .9 + .25 * .1 = .7.
    """
    head = LMHead(torch.eye(2, dtype=torch.float64))
    hidden = math.log(9) * torch.eye(2, dtype=torch.float64)
    (distance,) = softmax_distance(hidden, head, torch.tensor([0.75], dtype=torch.float64)).tolist()
    assert distance == pytest.approx(0.05, abs=1e-12)


def test_appendix_a_is_what_autograd_computes(batch):
    hidden, head, labels = batch
    lam = torch.tensor([0.3], dtype=torch.float64)
    mixed = interpolate(hidden[:1], hidden[2:3], lam)
    soft = mixed_labels(labels[:1], labels[2:3], lam, VOCAB)
    weight = head.weight.clone().requires_grad_()
    mixup_cross_entropy(mixed, LMHead(weight), soft).sum().backward()
    torch.testing.assert_close(mixup_head_gradient(mixed[0], head.weight, soft[0]), weight.grad)


def test_appendix_a_is_not_a_weighted_sum_of_the_two_ntp_gradients(batch):
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


def test_wrong_shapes_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        interpolate(torch.randn(2, 3), torch.randn(4, 3), torch.rand(2))
