"""The weights of IR-DRO in training: the same on any number of ranks and micro-batches, and without dropout."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from builders import random_examples
from forked import run_ranks
from modules import fit, small_data, small_module, weights_and_moments
from sftmix.distributed.process_group import all_reduce_sum_
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.strategy import trainer_arguments
from sftmix.functional.confidence import sum_by_example
from sftmix.functional.equations import LossSettings
from sftmix.training.module import SFTMixModule

TEMPERATURE = 0.2


def train(ranks, folder, *, strategy="single", tokens=60, lora=False, dropout=0.0, max_steps=-1, **loss):
    """Return weights and moments, and of each step the sum of the weights of the tokens of each example, and the loss.

    Both are of all ranks.
    """
    settings = LossSettings(**{"mu": 0.2, "dro_temperature": TEMPERATURE, **loss})
    module = small_module(ranks, strategy=strategy, lora=lora, dropout=dropout, loss=settings)
    data, found = small_data(), []
    data.batches = replace(data.batches, micro_batch_tokens=tokens)
    weigh, backward = module._with_dro_weights, module.backward_of_step

    def weighed(batch, temperature):
        batch = weigh(batch, temperature)
        assert module.lm.training, "dropout is on again"
        sums = torch.zeros(batch.num_examples, dtype=torch.float64)
        for micro in batch.micro_batches:
            total = sum_by_example(micro.weights, micro.example_of_position, micro.num_examples)
            sums.index_add_(0, micro.index_in_step, total)
        all_reduce_sum_(sums)
        found.append(sums)
        return batch

    def losses(batch):
        loss = backward(batch)
        total = loss.loss.double()
        all_reduce_sum_(total)
        found.append(total[None])
        return loss

    module._with_dro_weights, module.backward_of_step = weighed, losses
    arguments = trainer_arguments(strategy, "cpu", "32-true", ranks)
    trainer = fit(module, data, folder, max_steps=max_steps, **arguments)
    return {**weights_and_moments(module, trainer.optimizers[0]), **{f"step {k}": v for k, v in enumerate(found)}}


def assert_same_steps(got, expected):
    """Compare the weights w of the examples, the losses, and the weights of the model after all steps."""
    first, loss = (run["step 0"] / run["step 0"].sum() for run in (got, expected)), "step 1"
    torch.testing.assert_close(*first, rtol=0, atol=1e-6)
    torch.testing.assert_close(got[loss], expected[loss], rtol=1e-6, atol=0)
    for name in expected:
        if name.startswith(("step", "lm.")):  # single precision, after up to nine steps of Adam
            torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(SINGLE, tmp_path_factory.mktemp("alone"))


def test_the_weights_are_the_softmax_of_the_losses_over_the_step(alone):
    """At the first step, by torch's cross-entropy: the weights of the tokens of an example add up to w_i N."""
    lm, data = small_module(dropout=0.0).lm.causal_lm, small_data()
    step = data.sampler.epoch(0)[0]
    nll = []
    for i in step.examples:
        example = random_examples(22)[i]
        ids, n = torch.tensor([example.input_ids]), example.num_prompt_tokens
        with torch.no_grad():
            logits = lm(input_ids=ids).logits[0, n - 1 : -1]
        nll.append(torch.nn.functional.cross_entropy(logits, ids[0, n:]).item())
    expected = torch.softmax(torch.tensor(nll).double() / TEMPERATURE, 0)
    total = sum(random_examples(22)[i].num_response_tokens for i in step.examples)
    torch.testing.assert_close(alone["step 0"], expected * total, rtol=1e-5, atol=1e-6)
    assert expected.max() > 1.5 * expected.min(), "equal weights would be those of any temperature"


def test_micro_batches_do_not_change_them(alone, tmp_path):
    got = train(SINGLE, tmp_path, tokens=1)
    assert_same_steps(got, alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_do_not_change_them(alone, tmp_path, strategy):
    for got in run_ranks(2, partial(train, folder=tmp_path, strategy=strategy), tmp_path):
        assert_same_steps(got, alone)


def test_dropout_does_not_change_them(tmp_path):
    """The pass with gradient has dropout."""
    first = {"max_steps": 1, "lora": True}
    dry, wet = (train(SINGLE, tmp_path, dropout=p, **first) for p in (0.0, 0.5))
    torch.testing.assert_close(wet["step 0"], dry["step 0"], rtol=0, atol=0)
    assert not torch.equal(wet["step 1"], dry["step 1"])


def test_without_a_temperature_no_pass_is_added(tmp_path, monkeypatch):
    monkeypatch.setattr(SFTMixModule, "_with_dro_weights", lambda *_: pytest.fail("a pass"))
    module = small_module()
    fit(module, small_data(), tmp_path, max_steps=1)
