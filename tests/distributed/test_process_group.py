"""Several ranks take the same steps as one process: DDP and FSDP2, with tied and untied weights."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from builders import fit, odd_llama, random_examples
from forked import run_ranks
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.process_group import all_gather_object, all_reduce_sum, broadcast_object
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.sharding import replicate, whole
from sftmix.distributed.strategy import trainer_arguments
from sftmix.functional.equations import LossSettings
from sftmix.models.language_model import SFTMixLM
from sftmix.models.lora import Base, add_lora
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.module import SFTMixModule
from sftmix.training.optim import OptimizerSettings, SchedulerSettings

PAD = 0


class Caught(SFTMixModule):
    """Keeps the gradient of each step before clipping."""

    caught: list

    def backward_of_step(self, batch):
        loss = super().backward_of_step(batch)
        trained = {name: p for name, p in self.lm.named_parameters() if p.requires_grad}
        self.caught.append({name: whole(p.grad).clone() for name, p in trained.items()})
        return loss


def adapted(causal_lm):
    """Add LoRA whose second matrix is not 0, so that both matrices have a gradient."""
    causal_lm = add_lora(
        causal_lm, r=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=0, base=Base("base", None)
    )
    draw = torch.Generator().manual_seed(2)
    for name, parameter in causal_lm.named_parameters():
        if "lora_B" in name and not parameter.is_meta:
            parameter.data.normal_(std=0.1, generator=draw)
    return causal_lm


def steps(
    strategy,
    ranks,
    *,
    tied,
    mu=0.2,
    layout="padded",
    tokens=60,
    full=False,
    number=1,
    lora=False,
    bfloat16=False,
    once=True,
    noise=None,
):
    """Return the gradients of some steps and the weights after them, whole, and the number of micro-batches."""
    settings = SamplerSettings(global_batch_size=24, alpha=0.5, seed=3)
    sampler = StepSampler(24, [i % 2 == 0 for i in range(24)], settings)
    encoded = EncodedExamples.of(random_examples(24))
    causal_lm = odd_llama(tied=tied, weights=ranks.is_first)
    lm = SFTMixLM(adapted(causal_lm) if lora else causal_lm)
    if full:
        lm.checkpoint_activations()
    if strategy == "ddp":
        replicate(lm, torch.device("cpu"))
    module = Caught(
        lm,
        loss=LossSettings(mu=mu),
        optimizer=OptimizerSettings(lr=1e-2, max_grad_norm=0.05),
        scheduler=SchedulerSettings(warmup_ratio=0.0),
        neftune_alpha=noise,
        shards_in_bfloat16=bfloat16,
    )
    module.caught = []
    data = SFTDataModule(sampler, encoded, encoded, BatchSettings(layout, tokens, PAD))
    on_ranks = trainer_arguments(strategy, "cpu", "32-true", ranks, accumulates_whole=once)
    fit(module, data, **on_ranks, max_epochs=number, limit_val_batches=0)
    micro = len(data.train_dataloader().steps[0, 0].micro_batches)
    weights = {name: whole(p.detach()).clone() for name, p in lm.named_parameters()}
    return module.caught, weights, micro


def largest_difference(got, expected):
    """Return the largest difference over the largest value of all tensors."""
    assert got.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    return max((got[name] - expected[name]).abs().max().item() for name in expected) / largest


@pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's
@pytest.mark.parametrize("lora", [False, True], ids=["", "lora"])
@pytest.mark.parametrize("full", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_and_several_micro_batches_give_the_gradient_of_one_process(tmp_path, strategy, tied, full, lora):
    (expected,), after, micro = steps("single", SINGLE, tied=tied, tokens=100_000, lora=lora)
    assert micro == 1
    of_ranks = run_ranks(2, lambda ranks: steps(strategy, ranks, tied=tied, full=full, lora=lora), tmp_path)
    for (gradient,), weights, count in of_ranks:
        assert count > 1
        assert largest_difference(gradient, expected) < 1e-6
        assert weights.keys() == after.keys(), "tied weights are still tied"
        assert largest_difference(weights, after) < 1e-5, "Adam's first step divides a gradient by its own size"
    assert max(value.abs().max() for value in expected.values()) > 1e-3


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_five_steps_of_three_ranks_end_with_the_weights_of_one(tmp_path, strategy):
    _, after, _ = steps("single", SINGLE, tied=True, number=5)
    for _, weights, _ in run_ranks(3, lambda ranks: steps(strategy, ranks, tied=True, number=5), tmp_path):
        assert largest_difference(weights, after) < 1e-5


@pytest.mark.filterwarnings("ignore:.*`is_gradient_checkpointing` is deprecated.*:FutureWarning")  # PEFT's
@pytest.mark.parametrize(
    ("strategy", "tied", "lora", "full"),
    [
        ("ddp", True, False, False),
        ("fsdp", True, False, True),
        ("fsdp", False, False, False),
        ("fsdp", True, True, True),
    ],
)
def test_noise_is_the_same_on_two_ranks(tmp_path, strategy, tied, lora, full):
    options = {"tied": tied, "lora": lora, "noise": 20.0, "number": 3}
    gradients, after, _ = steps("single", SINGLE, tokens=100_000, **options)
    (clean, *_), _, _ = steps("single", SINGLE, tied=tied, lora=lora)
    assert largest_difference(gradients[0], clean) > 1e-2, "the noise has an effect"
    of_ranks = run_ranks(2, lambda ranks: steps(strategy, ranks, full=full, layout="packed", **options), tmp_path)
    for found, weights, count in of_ranks:
        assert count > 1
        assert largest_difference(found[0], gradients[0]) < 1e-6
        assert largest_difference(weights, after) < 1e-5


def test_a_rank_without_a_response_takes_the_step_too(tmp_path):
    """24 examples on eight ranks in micro-batches of a pair: some ranks have empty ones."""
    (expected,), _, _ = steps("single", SINGLE, tied=True)
    for (gradient,), _, _ in run_ranks(8, lambda ranks: steps("fsdp", ranks, tied=True, tokens=1), tmp_path):
        assert largest_difference(gradient, expected) < 1e-6


def test_shards_in_half_precision_leave_lambda_and_weights_as_they_are(tmp_path, monkeypatch):
    seen = []
    whole_forward = SFTMixLM.forward

    def forward(self, batch, settings, **options):
        seen.append((str(batch.weights.dtype), str(batch.lam.dtype), str(self.head.weight.dtype)))
        return whole_forward(self, batch, settings, **options)

    monkeypatch.setattr(SFTMixLM, "forward", forward)

    def types(ranks):
        steps("fsdp", ranks, tied=True, bfloat16=True)
        return seen

    for found in run_ranks(2, types, tmp_path):
        assert set(found) == {("torch.float64", "torch.float64", "torch.bfloat16")}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_reduced_after_each_micro_batch_are_the_same(tmp_path, strategy):
    (expected,), _, _ = steps("single", SINGLE, tied=True)
    for (gradient,), _, count in run_ranks(2, lambda r: steps(strategy, r, tied=True, once=False), tmp_path):
        assert count > 1
        assert largest_difference(gradient, expected) < 1e-6


def test_each_rank_holds_its_shard_only(tmp_path):
    def sizes(ranks):
        from sftmix.distributed.sharding import shard

        lm = SFTMixLM(odd_llama(tied=True, weights=ranks.is_first))
        shard(lm, torch.device("cpu"), bfloat16=False)
        assert all(isinstance(p, DTensor) for p in lm.parameters())
        return sum(p.to_local().numel() for p in lm.parameters())

    own = run_ranks(2, sizes, tmp_path)
    total = sum(p.numel() for p in odd_llama(tied=True).parameters())
    assert sum(own) == total
    assert max(own) < 0.55 * total


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_without_weights_get_those_of_the_first(tmp_path, strategy):
    def logits(ranks):
        from sftmix.distributed.sharding import shard

        lm = SFTMixLM(odd_llama(tied=True, weights=ranks.is_first)).eval()
        if strategy == "fsdp":
            shard(lm, torch.device("cpu"), bfloat16=False)
        else:
            replicate(lm, torch.device("cpu"))
        return lm.logits(torch.arange(9))

    expected = SFTMixLM(odd_llama(tied=True)).eval().logits(torch.arange(9))
    for got in run_ranks(2, logits, tmp_path):
        assert torch.allclose(got, expected, atol=1e-6)


def test_values_of_ranks_are_summed_gathered_and_broadcast(tmp_path):
    def share(ranks):
        return (
            all_reduce_sum([1.0, float(ranks.rank)]),
            all_gather_object({"ü": [ranks.rank, 0.1]}),
            broadcast_object(ranks.rank),
        )

    for total, gathered, first in run_ranks(3, share, tmp_path):
        assert total == [3.0, 3.0]
        assert gathered == [{"ü": [k, 0.1]} for k in range(3)]
        assert first == 0
    assert all_reduce_sum([2.5]) == [2.5]
    assert all_gather_object("only") == ["only"]
