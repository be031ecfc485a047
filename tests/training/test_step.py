"""The gradient of one optimizer step equals the dense equations' gradient for any micro-batches, layout and ranks.

In float64, for NTP, SFTMix and each variant of the loss, with NEFTune and instruction modelling.
"""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from builders import ODD_VOCAB, fit, odd_llama, random_examples
from sftmix.data.collate import BatchSettings, collate_step
from sftmix.data.layout import LAYOUTS
from sftmix.data.pairing import SamplerSettings, Step, StepSampler
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.module import SFTMixModule, derived_seed
from sftmix.training.optim import OptimizerSettings

PAD = 0


class Variant(NamedTuple):
    mu: float | None = 0.2
    by_mixed: bool = False
    weight: float = 1.0
    on: str = "all"
    alpha: float = 0.5
    unpaired: int = 0
    noise: float | None = None
    prompts: float = 0.0
    form: str = "full"
    smoothing: float = 0.0
    token_weight: str | None = None
    power: float = 1.0
    dro: float | None = None
    by_example: bool = False  # the data has a weight of each example


VARIANTS = {
    "ntp": Variant(mu=None),
    "sftmix": Variant(),
    "mu 0 in the stratified order": Variant(mu=0.0),
    "mixup with weight 1": Variant(mu=1.0),
    "mixup only": Variant(weight=0.0, mu=1.0),
    "ntp on the confident": Variant(on="confident"),
    "ntp on the unconfident": Variant(on="unconfident"),
    "divided by the mixed tokens": Variant(by_mixed=True),
    "another alpha": Variant(alpha=2.0),
    "examples without a partner": Variant(unpaired=5),
    "neftune": Variant(mu=None, noise=5.0),
    "sftmix with noise": Variant(noise=5.0, unpaired=5),
    "instruction modelling": Variant(mu=None, prompts=1.0),
    "sftmix with some loss on prompts": Variant(prompts=0.3, unpaired=5),
    "loss on the prompts of the confident": Variant(prompts=1.0, on="confident"),
    "everything at once": Variant(noise=5.0, prompts=0.5, by_mixed=True),
}
LOSSES = {  # each is computed token by token, or example by example: see `RUNS_OF_LOSSES`
    "ntp re-weighted by lambda": Variant(form="reweight", unpaired=5),
    "ntp with the partner's label": Variant(form="labels", mu=1.0, by_mixed=True),
    "label smoothing": Variant(mu=None, smoothing=0.1),
    "dft": Variant(mu=None, token_weight="dft"),
    "eaft beside mixup": Variant(token_weight="eaft", power=2.0, unpaired=5),
    "ir-dro": Variant(mu=None, dro=0.3),
    "ir-dro beside mixup": Variant(dro=0.3, unpaired=5, noise=5.0),
    "ir-dro on the confident": Variant(dro=0.3, on="confident"),
    "weights of the data": Variant(mu=None, by_example=True),
    "weights of the data on the confident": Variant(by_example=True, weight=0.5, on="confident"),
    "all weights at once": Variant(by_example=True, dro=2.0, token_weight="dft", smoothing=0.1, form="labels"),
}
RUNS_OF_LOSSES = [
    *((name, "packed", 60, 3) for name in LOSSES),
    *(
        (name, layout, tokens, 1)
        for name in LOSSES
        for layout, tokens in (("padded", 1), ("grouped", 1000))
        if "ir-" in name
    ),
]


def step_of(variant: Variant) -> tuple[Step, list[bool | None], list[float]]:
    subsets: list[bool | None] = [i % 2 == 0 for i in range(32)]
    for i in range(variant.unpaired):
        subsets[3 * i] = None
    settings = SamplerSettings(global_batch_size=32, alpha=variant.alpha, seed=3)
    sampler = StepSampler(32, None if variant.mu is None else subsets, settings)
    (step,) = sampler.epoch(0)
    chosen = {"all": None, "confident": True, "unconfident": False}[variant.on]
    weights = [variant.weight if chosen is None or subset is chosen else 0.0 for subset in subsets]
    if variant.by_example:
        weights = [weight * (0.25 + i % 3) for i, weight in enumerate(weights)]
    return step, subsets, weights


class OneStep(SFTDataModule):
    """One step whose tensors are given."""

    def __init__(self, batch):
        LightningDataModule.__init__(self)
        self.batch = batch

    def train_dataloader(self):
        return DataLoader([self.batch], batch_size=None)

    def val_dataloader(self):
        return []


def with_the_module(variant: Variant, layout: str, micro_batch_tokens: int, world_size: int):
    """Return loss and gradients of a step in Lightning's loop, before clipping.

    The parts of several ranks are the micro-batches of one process, and add up.
    """
    step, _, weights = step_of(variant)
    parts = [
        collate_step(
            step,
            random_examples(32),
            weights,
            BatchSettings(layout, micro_batch_tokens, PAD, variant.prompts),
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    batch = parts[0]._replace(micro_batches=tuple(micro for part in parts for micro in part.micro_batches))
    caught = {}

    class Caught(SFTMixModule):
        def backward_of_step(self, batch):
            loss = super().backward_of_step(batch)
            caught["loss"] = loss.loss.item()
            caught["grads"] = [p.grad.clone() for p in self.lm.parameters()]
            return loss

    module = Caught(
        SFTMixLM(odd_llama().double()),
        loss=LossSettings(
            mu=variant.mu,
            normalize_by="mixed_tokens" if variant.by_mixed else "tokens",
            form=variant.form,
            label_smoothing=variant.smoothing,
            token_weight=variant.token_weight,
            token_weight_power=variant.power,
            dro_temperature=variant.dro,
        ),
        optimizer=OptimizerSettings(lr=1e-3),
        neftune_alpha=variant.noise,
    )
    fit(module, OneStep(batch), precision="64-true", max_epochs=1)
    return caught["loss"], caught["grads"]


def with_the_dense_equations(variant: Variant):
    """Return loss and gradients by the formulas of the paper: example by example, no padding, one-hot labels."""
    step, _, weights = step_of(variant)
    lm = odd_llama().double()
    hidden, onehot, of_prompts = [], [], []
    for i, e in enumerate(random_examples(32)):
        ids = torch.tensor([e.input_ids])
        embedded = lm.model.embed_tokens(ids)
        if variant.noise is not None:
            drawn = torch.empty(embedded[0].shape, dtype=torch.float32)
            drawn.uniform_(-1, 1, generator=torch.Generator().manual_seed(derived_seed(0, 0, i)))
            embedded = embedded + variant.noise / drawn.numel() ** 0.5 * drawn
        states = lm.model(inputs_embeds=embedded).last_hidden_state[0]
        n = e.num_prompt_tokens
        hidden.append(states[n - 1 : -1])
        onehot.append(F.one_hot(ids[0, n:], ODD_VOCAB).double())
        of_prompts.append((states[: n - 1], F.one_hot(ids[0, 1:n], ODD_VOCAB).double()))
    head = lm.lm_head.weight.T

    def cross_entropy(z, y):
        return -(y * torch.log(torch.softmax(z @ head, dim=-1))).sum()

    def next_token(z, y):
        """Return the NTP loss of each token with its token weight."""
        p = torch.softmax(z @ head, dim=-1)
        spread = (1 - variant.smoothing) * y + variant.smoothing / ODD_VOCAB
        top = p.detach().sort(descending=True).values[:, :20]
        top = top / top.sum(-1, keepdim=True)
        weight = {
            None: torch.ones(len(y)),
            "dft": (p.detach() * y).sum(-1),
            "eaft": -(top * top.log()).sum(-1) / 3,
        }[variant.token_weight]
        return weight**variant.power * -(spread * p.log()).sum(-1)

    if variant.dro is not None:  # without noise, and with neither smoothing nor token weights
        learned = [i for i in step.examples if weights[i] > 0]
        plain = [torch.tensor([e.input_ids]) for e in random_examples(32)]
        nll = []
        for i in learned:
            n = random_examples(32)[i].num_prompt_tokens
            nll.append(F.cross_entropy(lm(input_ids=plain[i]).logits[0, n - 1 : -1], plain[i][0, n:]).item())
        share = torch.softmax(torch.tensor(nll, dtype=torch.float64) / variant.dro, 0).tolist()
        total = sum(len(onehot[i]) for i in learned)
        for i, w in zip(learned, share, strict=True):
            weights[i] *= w * total / len(onehot[i])
    total = sum(len(y) for y in onehot)
    ntp = sum(weights[i] * next_token(hidden[i], onehot[i]).sum() for i in step.examples)
    if variant.prompts:
        total += sum(len(y) for _, y in of_prompts)
        ntp = ntp + sum(weights[i] * variant.prompts * cross_entropy(*of_prompts[i]) for i in step.examples)
    mixup, mixed = torch.zeros((), dtype=torch.float64), 0
    if variant.mu is not None:
        for c, u, lam in zip(step.confident, step.unconfident, step.lam, strict=True):
            n = min(len(onehot[c]), len(onehot[u]))
            z_c, z_u, y_c, y_u = hidden[c][:n], hidden[u][:n], onehot[c][:n], onehot[u][:n]
            if variant.form == "full":
                mixup = mixup + cross_entropy(lam * z_c + (1 - lam) * z_u, lam * y_c + (1 - lam) * y_u)
            else:
                mixup = mixup + lam**2 * cross_entropy(z_c, y_c) + (1 - lam) ** 2 * cross_entropy(z_u, y_u)
            if variant.form == "labels":
                mixup = mixup + lam * (1 - lam) * (cross_entropy(z_c, y_u) + cross_entropy(z_u, y_c))
            mixed += n
    loss = ntp / total + (variant.mu or 0.0) * mixup / (mixed if variant.by_mixed else total)
    loss.backward()
    return loss.item(), [p.grad for p in lm.parameters()]


@pytest.mark.parametrize(
    ("name", "layout", "micro_batch_tokens", "world_size"),
    [
        *(
            (name, layout, *sizes)
            for name in VARIANTS
            for layout in LAYOUTS
            for sizes in ((1, 1), (60, 1), (1000, 1), (60, 3))
        ),
        *RUNS_OF_LOSSES,
    ],
)
def test_a_step_has_the_gradient_of_the_dense_equations_in_any_micro_batches(
    name, layout, micro_batch_tokens, world_size
):
    variant = {**VARIANTS, **LOSSES}[name]
    loss, grads = with_the_module(variant, layout, micro_batch_tokens, world_size)
    expected, reference = with_the_dense_equations(variant)
    assert loss == pytest.approx(expected, rel=1e-9)
    largest = max(g.abs().max().item() for g in reference)
    for got, want in zip(grads, reference, strict=True):
        assert (got - want).abs().max().item() <= 1e-9 * largest
    assert largest > 1e-3, "a gradient of 0 would agree with any other"


def test_instruction_modelling_is_the_mean_cross_entropy_of_torch_over_all_predicted_tokens():
    loss, grads = with_the_module(VARIANTS["instruction modelling"], "packed", 60, 1)
    lm = odd_llama().double()
    ids = [torch.tensor([e.input_ids]) for e in random_examples(32)]
    logits = torch.cat([lm(input_ids=i).logits[0, :-1] for i in ids])
    expected = F.cross_entropy(logits, torch.cat([i[0, 1:] for i in ids]))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    for got, p in zip(grads, lm.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-9, atol=1e-12)


def test_noise_differs_by_seed_step_and_example():
    """Also in the 32 bits that a CPU's generator uses."""
    seeds = [derived_seed(*s) for s in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 2, 1), (0, 1, 2), (2, 1, 0))]
    first = [torch.rand(1, generator=torch.Generator().manual_seed(seed)).item() for seed in seeds]
    assert len(set(seeds)) == len(set(first)) == len(seeds)
    assert derived_seed(0, 1, 2) == seeds[5]


def test_dropout_on_a_cpu_depends_on_the_seed():
    draws = set()
    for seed, step in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(derived_seed(seed, step))
        draws.add(torch.rand(1).item())
    assert len(draws) == 3
