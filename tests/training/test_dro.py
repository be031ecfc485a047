"""The weights of IR-DRO in training: the same on any number of ranks and micro-batches, and without dropout."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning import Callback

from builders import random_examples
from forked import run_ranks
from modules import (
    EPOCHS,
    STEPS_PER_EPOCH,
    TOTAL,
    fit,
    same,
    small_data,
    small_module,
    small_settings,
    weights_and_moments,
)
from sftmix.distributed.process_group import all_reduce_sum_
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.stopping import StopRequest
from sftmix.distributed.strategy import trainer_arguments
from sftmix.errors import InputError
from sftmix.functional.confidence import sum_by_example
from sftmix.functional.equations import LossSettings
from sftmix.training.dro import DroWeights
from sftmix.training.fit import fit as fit_to_the_end
from sftmix.training.optim import OptimizerSettings

TEMPERATURE = 0.2
PREVIOUS = {"dro_losses": "previous_epoch"}


def train(
    ranks, folder, *callbacks, strategy="single", tokens=60, lora=False, dropout=0.0, max_steps=-1, lr=1e-2, **loss
):
    """Return weights and moments, and of each step the sum of the weights of the tokens of each example, and the loss.

    Both are of all ranks.
    """
    settings = LossSettings(**{"mu": 0.2, "dro_temperature": TEMPERATURE, **loss})
    optimizer = OptimizerSettings(lr=lr, max_grad_norm=0.5)
    module = small_module(ranks, strategy=strategy, lora=lora, dropout=dropout, loss=settings, optimizer=optimizer)
    data, found = small_data(), []
    data.batches = replace(data.batches, micro_batch_tokens=tokens)
    weigh, backward = module.dro.weigh, module.backward_of_step

    def weighed(*arguments):
        batch = weigh(*arguments)
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

    module.dro.weigh, module.backward_of_step = weighed, losses
    arguments = trainer_arguments(strategy, "cpu", "32-true", ranks)
    trainer = fit(module, data, folder, *callbacks, max_steps=max_steps, **arguments)
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


def test_without_a_temperature_or_with_recorded_losses_no_pass_is_added(tmp_path, monkeypatch):
    monkeypatch.setattr(DroWeights, "_losses_now", lambda *_: pytest.fail("a pass"))
    fit(small_module(), small_data(), tmp_path, max_steps=1)
    fit(small_module(loss=LossSettings(mu=0.2, dro_temperature=1.0, **PREVIOUS)), small_data(), tmp_path)


class MeanLosses(Callback):
    """Computes the mean nll of each example of a step by transformers, before the step."""

    def __init__(self):
        self.of_epoch = [{} for _ in range(EPOCHS)]

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        causal_lm, of_epoch = module.lm.causal_lm.eval(), self.of_epoch[trainer.current_epoch]
        for i in (i for micro in batch.micro_batches for i in micro.examples):
            ids, n = torch.tensor([random_examples(22)[i].input_ids]), random_examples(22)[i].num_prompt_tokens
            with torch.no_grad():
                logits = causal_lm(input_ids=ids).logits[0, n - 1 : -1]
            of_epoch[i] = torch.nn.functional.cross_entropy(logits, ids[0, n:]).item()
        module.train()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run by the losses of the previous epoch, in one process, with the losses by transformers."""
    losses = MeanLosses()
    return train(SINGLE, tmp_path_factory.mktemp("recorded"), losses, **PREVIOUS), losses.of_epoch


def test_recorded_weights_are_the_softmax_of_the_losses_in_the_previous_epoch(recorded):
    """Step by step, by torch's cross-entropy under the weights that the model had in the previous epoch."""
    run, of_epoch = recorded
    data = small_data()
    for step in range(TOTAL):
        epoch, k = divmod(step, STEPS_PER_EPOCH)
        examples = data.sampler.epoch(epoch)[k].examples
        lengths = torch.tensor([random_examples(22)[i].num_response_tokens for i in examples]).double()
        if epoch == 0:
            expected = lengths
        else:
            mean = torch.tensor([of_epoch[epoch - 1][i] for i in examples]).double()
            expected = torch.softmax(mean / TEMPERATURE, 0) * lengths.sum()
        torch.testing.assert_close(run[f"step {2 * step}"], expected, rtol=1e-5, atol=1e-6)


def test_if_the_model_does_not_move_recorded_losses_are_those_of_the_step(tmp_path):
    """The gradients and losses of each step from the second epoch on: a limit case."""
    fixed = {"lr": 1e-30, "label_smoothing": 0.1, "token_weight": "dft"}
    got, expected = (train(SINGLE, tmp_path, **fixed, **more) for more in (PREVIOUS, {}))
    for k in range(2 * STEPS_PER_EPOCH, 2 * TOTAL):
        torch.testing.assert_close(got[f"step {k}"], expected[f"step {k}"], rtol=1e-5, atol=0)
    assert not torch.allclose(got["step 0"], expected["step 0"], rtol=0.1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_and_micro_batches_do_not_change_recorded_weights(recorded, tmp_path, ranks):
    if ranks == 1:
        assert_same_steps(train(SINGLE, tmp_path, tokens=1, **PREVIOUS), recorded[0])
    else:
        for got in run_ranks(2, partial(train, folder=tmp_path, strategy="ddp", **PREVIOUS), tmp_path):
            assert_same_steps(got, recorded[0])


def run_of_states(folder):
    """Train to the end from the newest state, and keep the state after each step."""
    module = small_module(loss=LossSettings(mu=0.2, dro_temperature=TEMPERATURE, **PREVIOUS))
    settings = small_settings(folder, every=1, keep=TOTAL, log_every=1)
    fit_to_the_end(module, small_data(), settings, lambda _: None, SINGLE, StopRequest())
    return dict(module.state_dict()), module.dro.state_dict()


def test_a_run_with_recorded_losses_ends_with_the_same_bits_from_the_state_after_any_step(tmp_path, one_thread):
    """Within the first epoch, within the second one, and at its end."""
    weights, losses = run_of_states(tmp_path / "whole")
    assert len(losses["previous"]["nll"]) == len(losses["current"]["nll"]) == 22
    for step in (2, 4, 6):
        folder = tmp_path / f"{step}"
        shutil.copytree(tmp_path / f"whole/states/step-{step:08d}", folder / f"states/step-{step:08d}")
        got, rest = run_of_states(folder)
        assert same(got, weights), step
        assert rest == losses, step


def test_one_epoch_has_no_previous_losses(tmp_path):
    with pytest.raises(InputError, match="dro_losses=previous_epoch in one epoch has no effect"):
        fit(
            small_module(loss=LossSettings(mu=0.2, dro_temperature=1.0, **PREVIOUS)),
            small_data(),
            tmp_path,
            max_epochs=1,
        )


def test_a_step_with_an_example_that_was_not_recorded_is_not_weighted(tmp_path):
    """A limit leaves out other examples in each epoch; `overfit_batches` has the same ones in every epoch."""
    for limit, expected in (("limit_train_batches", {False}), ("overfit_batches", {False, True})):
        module, found = small_module(loss=LossSettings(mu=0.2, dro_temperature=0.01, **PREVIOUS)), set()
        weigh = module.dro.weigh

        def weighed(lm, batch, epoch, module=module, found=found, weigh=weigh):
            after = weigh(lm, batch, epoch)
            is_known = all(i in module.dro.previous for micro in batch.micro_batches for i in micro.examples)
            pairs = zip(after.micro_batches, batch.micro_batches, strict=True)
            assert is_known != all(torch.equal(a.weights, b.weights) for a, b in pairs)
            found.add(is_known)
            return after

        module.dro.weigh = weighed
        fit(module, small_data(), tmp_path, max_epochs=2, **{limit: 2})
        assert found == expected
