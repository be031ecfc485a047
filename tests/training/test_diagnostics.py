"""The metrics of Mixup equal those of dense autograd for any micro-batches, and do not change training."""

import pytest
import torch

from builders import fit, odd_llama, random_examples
from forked import run_ranks
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.sharding import replicate, whole
from sftmix.distributed.strategy import trainer_arguments
from sftmix.functional.equations import FORMS, LMHead, LossSettings, mixup_parts, mixup_sum, ntp_sum, token_nll
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import Base, add_lora
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.diagnostics import MixupDiagnostics
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings, SchedulerSettings

PAD, NUMBER = 0, 24
SUBSETS: list[bool | None] = [None if i in (0, 5) else i % 2 == 0 for i in range(NUMBER)]
SAMPLER = SamplerSettings(global_batch_size=NUMBER, alpha=0.5, seed=3)
MU = 0.2


def weights_of(on):
    return [1.0 if on is None or subset is on else 0.0 for subset in SUBSETS]


class Kept(MixupDiagnostics):
    """Keeps the metrics of each measured step."""

    def __init__(self, every_n_steps):
        super().__init__(every_n_steps)
        self.kept, self.lam = {}, {}

    def on_train_batch_end(self, trainer, pl_module, *arguments):
        super().on_train_batch_end(trainer, pl_module, *arguments)
        if self.diagnosis is not None:
            self.kept[pl_module.step] = self.diagnosis.metrics()
            self.lam[pl_module.step] = list(self.diagnosis.lam)


def train(
    strategy="single",
    ranks=SINGLE,
    *,
    every=1,
    mu=MU,
    by_mixed=False,
    on=None,
    tokens=60,
    number=1,
    lora=False,
    tied=True,
    dropout=0.0,
    double=False,
    subsets=SUBSETS,
    layout="padded",
    prompt_weight=0.0,
    form="full",
):
    """Return metrics and lambdas of each measured step, the weights at the end, and the number of micro-batches."""
    sampler = StepSampler(NUMBER, subsets, SAMPLER)
    encoded = EncodedExamples.of(random_examples(NUMBER))
    causal_lm = odd_llama(weights=ranks.is_first, tied=tied, dropout=dropout)
    if lora:
        base = Base("base", None)
        causal_lm = add_lora(causal_lm, r=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=0, base=base)
    lm = SFTMixLM(causal_lm.double() if double else causal_lm)
    if strategy == "ddp":
        replicate(lm, torch.device("cpu"))
    module = SFTMixModule(
        lm,
        loss=LossSettings(mu=mu, normalize_by="mixed_tokens" if by_mixed else "tokens", form=form),
        optimizer=OptimizerSettings(lr=1e-2, max_grad_norm=0.05),
        scheduler=SchedulerSettings(warmup_ratio=0.0),
    )
    batches = BatchSettings(layout, tokens, PAD, prompt_weight)
    data = SFTDataModule(sampler, encoded, encoded, batches, weights=weights_of(on))
    kept = Kept(every or 1)
    fit(
        module,
        data,
        *([kept] if every else []),
        **trainer_arguments(strategy, "cpu", "64-true" if double else "32-true", ranks),
        max_epochs=number,
        limit_val_batches=0,
    )
    after = {name: whole(p.detach()).clone() for name, p in lm.named_parameters()}
    return kept.kept, kept.lam, after, len(data.train_dataloader().steps[0, 0].micro_batches)


def cosine(one, other):
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


def by_dense_autograd(*, on, by_mixed, prompt_weight=0.0):
    """Return metrics and lambdas by the equations of the paper, example by example, on a head that is not tied."""
    (step,) = StepSampler(NUMBER, SUBSETS, SAMPLER).epoch(0)
    lm, encoded, weights = odd_llama().double(), random_examples(NUMBER), weights_of(on)
    weight = lm.lm_head.weight.detach().clone().requires_grad_()
    head = LMHead(weight)
    hidden, labels, prompts = {}, {}, {}
    for i in step.examples:
        ids = torch.tensor([encoded[i].input_ids])
        border = encoded[i].num_prompt_tokens
        every = lm.model(input_ids=ids).last_hidden_state[0, :-1].detach()
        hidden[i], prompts[i] = every[border - 1 :], (every[: border - 1], ids[0, 1:border])
        labels[i] = ids[0, border:]
    num_response_tokens = num_tokens = sum(len(y) for y in labels.values())
    ntp = sum(
        ntp_sum(hidden[i], head, labels[i], torch.full(labels[i].shape, weights[i]).double()) for i in step.examples
    )
    if prompt_weight:
        num_tokens += sum(len(y) for _, y in prompts.values())
        for i, (z, y) in prompts.items():
            ntp = ntp + ntp_sum(z, head, y, torch.full(y.shape, weights[i] * prompt_weight).double())
    mixup, mixed, distance = torch.zeros(()), 0, 0.0
    parts = dict.fromkeys(("confident", "unconfident", "reweighting", "smoothing", "gap"), torch.zeros(()))
    for c, u, lam in zip(step.confident, step.unconfident, step.lam, strict=True):
        n = min(len(labels[c]), len(labels[u]))
        states, targets = torch.cat([hidden[c][:n], hidden[u][:n]]), torch.cat([labels[c][:n], labels[u][:n]])
        lams = torch.full((n,), lam, dtype=torch.float64)
        mixup, mixed = mixup + mixup_sum(states, head, targets, lams), mixed + n
        for name, i in (("confident", c), ("unconfident", u)):
            parts[name] = parts[name] + token_nll(hidden[i][:n], head, labels[i][:n]).sum()
        for name, part in mixup_parts(states, head, targets, lams)._asdict().items():
            parts[name] = parts[name] + part.sum()
        p_c, p_u = ((z @ weight.T).softmax(-1) for z in (hidden[c][:n], hidden[u][:n]))
        of_mixed = ((lam * hidden[c][:n] + (1 - lam) * hidden[u][:n]) @ weight.T).softmax(-1)
        distance += (of_mixed - lam * p_c - (1 - lam) * p_u).abs().sum().item() / 2
    (g_ntp,) = torch.autograd.grad(ntp / num_tokens, weight)
    denominator = mixed if by_mixed else num_tokens
    (g_mix,) = torch.autograd.grad(MU * mixup / denominator, weight)
    of_part = {name: torch.autograd.grad(MU * part / denominator, weight)[0] for name, part in parts.items()}
    basis, _ = torch.linalg.qr(torch.stack([of_part[s].flatten() for s in ("confident", "unconfident")], 1))
    nll = {i: token_nll(hidden[i], head, labels[i]).sum().item() for i in step.examples}

    def loss(members):
        return sum(nll[i] for i in members) / sum(len(labels[i]) for i in members)

    return {
        "mixup/token_share": 2 * mixed / num_response_tokens,
        "mixup/ntp_loss_confident": loss(step.confident),
        "mixup/ntp_loss_unconfident": loss(step.unconfident),
        "mixup/loss": mixup.item() / mixed,
        "mixup/grad_norm_ratio": (g_mix.norm() / g_ntp.norm()).item(),
        "mixup/grad_cosine": cosine(g_mix, g_ntp),
        "mixup/softmax_distance": distance / mixed,
        "mixup/grad_span_cosine": ((basis.T @ g_mix.flatten()).norm() / g_mix.norm()).item(),
        "mixup/reweighting_cosine": cosine(g_mix, of_part["reweighting"]),
        **{
            f"mixup/{name}_norm_ratio": (of_part[name].norm() / g_ntp.norm()).item()
            for name in ("reweighting", "smoothing", "gap")
        },
    }, list(step.lam)


@pytest.mark.parametrize(("tokens", "layout"), [(1, "padded"), (60, "packed"), (100_000, "grouped")])
@pytest.mark.parametrize(("on", "by_mixed"), [(None, False), (True, False), (False, True)])
def test_the_metrics_equal_those_of_dense_autograd(on, by_mixed, tokens, layout):
    metrics, lam, _, count = train(on=on, by_mixed=by_mixed, tokens=tokens, layout=layout, double=True)
    expected, expected_lam = by_dense_autograd(on=on, by_mixed=by_mixed)
    assert metrics[1] == pytest.approx(expected, rel=1e-9)
    assert lam[1] == expected_lam
    assert (count == 1) == (tokens == 100_000)
    assert 0 < abs(expected["mixup/grad_cosine"]) < 0.999, "equal gradients could not show an error"
    assert expected["mixup/ntp_loss_confident"] != pytest.approx(expected["mixup/ntp_loss_unconfident"], rel=1e-3)


def test_the_gradient_of_mixup_is_that_of_its_form_and_only_mixup_has_a_gap():
    full, reweight, labels = (train(form=form, double=True)[0][1] for form in FORMS)
    assert reweight["mixup/reweighting_cosine"] == pytest.approx(1.0, rel=1e-12)
    assert reweight["mixup/grad_norm_ratio"] == pytest.approx(full["mixup/reweighting_norm_ratio"], rel=1e-12)
    assert labels["mixup/grad_norm_ratio"] != pytest.approx(full["mixup/grad_norm_ratio"], rel=1e-6)
    assert [("mixup/gap_norm_ratio" in metrics) for metrics in (full, reweight, labels)] == [True, False, False]


@pytest.mark.parametrize("tokens", [60, 100_000])
@pytest.mark.parametrize(("on", "by_mixed"), [(None, False), (False, True)])
def test_with_loss_on_prompts_only_the_gradient_of_ntp_covers_them(on, by_mixed, tokens):
    metrics, _, _, _ = train(on=on, by_mixed=by_mixed, tokens=tokens, double=True, prompt_weight=0.5)
    expected, _ = by_dense_autograd(on=on, by_mixed=by_mixed, prompt_weight=0.5)
    assert metrics[1] == pytest.approx(expected, rel=1e-9)
    without, _ = by_dense_autograd(on=on, by_mixed=by_mixed)
    for name, value in without.items():
        is_gradient = name.startswith("mixup/grad_norm") or name.endswith(("norm_ratio", "grad_cosine"))
        assert (expected[name] == pytest.approx(value, rel=1e-9)) == (not is_gradient), name


@pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's
@pytest.mark.parametrize("lora", [False, True], ids=["", "lora"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_have_the_metrics_of_one_process(tmp_path, strategy, lora):
    expected, expected_lam, _, count = train(tokens=100_000, lora=lora)
    assert count == 1
    for metrics, lam, _, count in run_ranks(2, lambda ranks: train(strategy, ranks, lora=lora), tmp_path):
        assert count > 1
        assert metrics[1] == pytest.approx(expected[1], rel=5e-5)
        assert lam == expected_lam


def test_a_rank_without_a_response_adds_nothing(tmp_path):
    expected, _, _, _ = train()
    for metrics, _, _, _ in run_ranks(8, lambda ranks: train("fsdp", ranks, tokens=1), tmp_path):
        assert metrics[1] == pytest.approx(expected[1], rel=5e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_training_ends_with_the_same_bits(tied):
    """With dropout, whose draws would change if the callback drew random numbers."""
    _, _, without, _ = train(every=None, number=5, dropout=0.2, tied=tied)
    metrics, _, observed, _ = train(every=2, number=5, dropout=0.2, tied=tied)
    assert list(metrics) == [1, 2, 4, 5], "the first, every second and the last"
    for name, weights in without.items():
        assert torch.equal(weights, observed[name]), name
    _, _, other, _ = train(every=None, number=5, dropout=0.3, tied=tied)
    assert not all(torch.equal(weights, other[name]) for name, weights in without.items()), (
        "the weights depend on dropout"
    )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_training_of_two_ranks_ends_with_the_same_bits(tmp_path, strategy):
    pair = [
        run_ranks(2, lambda ranks, every=every: train(strategy, ranks, every=every, number=3), tmp_path / str(every))
        for every in (None, 1)
    ]
    for (_, _, without, _), (metrics, _, observed, _) in zip(*pair, strict=True):
        assert list(metrics) == [1, 2, 3]
        assert all(torch.equal(weights, observed[name]) for name, weights in without.items())


def test_metrics_that_do_not_apply_are_left_out():
    assert train(mu=None, subsets=None)[0] == {}, "only next-token prediction"
    assert train(subsets=[None] * NUMBER)[0] == {1: {"mixup/token_share": 0.0}}, "a step without a pair"
    metrics = train(mu=0.0)[0][1]
    assert metrics["mixup/grad_norm_ratio"] == 0.0
    assert metrics["mixup/grad_cosine"] == pytest.approx(train()[0][1]["mixup/grad_cosine"])
