"""The split by the losses of the first epoch: what is recorded, how it is ranked, and that it survives a stop."""

import shutil
from itertools import chain
from statistics import median

import pytest
import torch
from lightning import Callback

import sftmix.training.fit as training
from builders import random_examples
from forked import run_ranks
from modules import EPOCHS, PAD, TOTAL, fit, same, small_module, small_settings
from sftmix.data.collate import BatchSettings
from sftmix.data.pairing import FirstEpochSampler, SamplerSettings, StepSampler
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.stopping import StopRequest
from sftmix.distributed.strategy import trainer_arguments
from sftmix.functional.equations import LossSettings
from sftmix.training.datamodule import SFTDataModule
from sftmix.training.first_epoch import FirstEpochSplit

WINDOW = 7
STATE = ("nll", "confidence", "is_confident", "val", "val_is_confident")
TIMES = ("seconds", "tokens_per_sec", "train_loss_last_step")  # and what is read from the file of metrics
SETTINGS = SamplerSettings(global_batch_size=8, alpha=0.5, seed=3)


def data(*, layout="padded", micro_batch_tokens=60, num_workers=0):
    """Three steps an epoch, the last one short, and held-out examples."""
    examples = random_examples(29)
    train, val = (EncodedExamples.of(part) for part in (examples[:22], examples[22:]))
    sampler = FirstEpochSampler(22, SETTINGS)
    return SFTDataModule(sampler, train, val, BatchSettings(layout, micro_batch_tokens, PAD), num_workers=num_workers)


def recorder(order=lambda _: None):
    return FirstEpochSplit(WINDOW, order)


class Forward(Callback):
    """Computes the nll of the examples of a step by transformers, before the step."""

    def __init__(self):
        self.nll = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch:
            return
        causal_lm = module.lm.causal_lm.eval()
        for i in (i for micro in batch.micro_batches for i in micro.examples):
            example = trainer.datamodule.train[i]
            ids = torch.tensor([example.input_ids])
            labels = ids.clone()
            labels[:, : example.num_prompt_tokens] = -100
            with torch.no_grad():
                self.nll[i] = causal_lm(input_ids=ids, labels=labels).loss.item() * example.num_response_tokens
        module.train()


def test_the_recorded_losses_are_those_of_transformers_before_the_update(tmp_path):
    recorded, forward = recorder(), Forward()
    fit(small_module(dropout=0.0), data(), tmp_path, recorded, forward)
    assert sorted(recorded.nll) == sorted(forward.nll) == list(range(22))
    assert [recorded.nll[i] for i in range(22)] == pytest.approx([forward.nll[i] for i in range(22)], rel=1e-6)


def test_the_subsets_are_those_of_ranks_within_windows_that_are_computed_by_hand(tmp_path):
    recorded, own = recorder(), data()
    fit(small_module(dropout=0.0), own, tmp_path, recorded)
    order = [i for step in StepSampler(22, None, SETTINGS).epoch(0) for i in step.unpaired]  # that of recipe=ntp
    windows = [order[:7], order[7:14], order[14:]]
    mean = {i: recorded.nll[i] / own.train[i].num_response_tokens for i in order}
    confidence = {}
    for window in windows:
        for i in window:
            better = sum(mean[j] < mean[i] for j in window)
            confidence[own.train[i].example_id] = 1 - (better + 0.5) / len(window)
    assert {k: recorded.confidence[k] for k in confidence} == pytest.approx(confidence)
    middle = median(confidence.values())
    for i, is_confident in enumerate(recorded.is_confident):
        value = confidence[own.train[i].example_id]
        assert value == middle or is_confident == (value > middle)
    assert sum(recorded.is_confident) == 11
    val = [nll / num_tokens for _, num_tokens, nll in zip(*recorded.val, strict=True)]
    assert recorded.val_is_confident == [v <= sorted(val)[2] for v in val]
    for step in chain.from_iterable(map(own.sampler.epoch, range(1, EPOCHS))):
        assert all(recorded.is_confident[i] for i in step.confident)
        assert not any(recorded.is_confident[i] for i in step.unconfident)
        assert len(step.confident) == len(step.unconfident) > 0


def test_the_first_epoch_is_that_of_next_token_prediction(tmp_path):
    ntp, first = small_module(loss=LossSettings(mu=None)), small_module()
    own = data()
    plain = SFTDataModule(StepSampler(22, None, SETTINGS), own.train, own.val, own.batches)
    fit(ntp, plain, tmp_path, EndOfFirstEpoch())
    fit(first, own, tmp_path, recorder(), EndOfFirstEpoch())
    assert same(dict(first.state_dict()), dict(ntp.state_dict()))


class EndOfFirstEpoch(Callback):
    """Ends a run whose schedule is over all epochs."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The record of a run in one process, in padded micro-batches."""
    recorded = recorder()
    fit(small_module(dropout=0.0), data(), tmp_path_factory.mktemp("run"), recorded)
    return recorded


@pytest.mark.parametrize("settings", [{"micro_batch_tokens": 12}, {"layout": "grouped"}, {"num_workers": 1}])
def test_micro_batches_layouts_and_workers_do_not_change_the_split(tmp_path, expected, settings):
    got = recorder()
    fit(small_module(dropout=0.0), data(**settings), tmp_path, got)
    assert got.is_confident == expected.is_confident
    assert got.val_is_confident == expected.val_is_confident
    assert [got.nll[i] for i in range(22)] == pytest.approx([expected.nll[i] for i in range(22)], rel=1e-5)


def test_two_ranks_split_as_one_does(tmp_path, expected):
    def train(ranks):
        recorded = recorder()
        module = small_module(ranks, strategy="ddp", dropout=0.0)
        fit(module, data(), tmp_path, recorded, **trainer_arguments("ddp", "cpu", "32-true", ranks))
        return {**state_of(recorded), "val": None}

    for got in run_ranks(2, train, tmp_path / "ranks"):
        assert got["is_confident"] == expected.is_confident
        assert got["val_is_confident"] == expected.val_is_confident
        assert [got["nll"][i] for i in range(22)] == pytest.approx([expected.nll[i] for i in range(22)], rel=1e-5)


def state_of(recorded):
    return {name: getattr(recorded, name) for name in STATE}


def run(folder):
    """Train to the end from the newest state, and keep the state after each step."""
    module, recorded = small_module(), recorder(lambda confidence: list(range(len(confidence))))
    settings = small_settings(folder, every=1, keep=TOTAL, log_every=1, recorder=recorded)
    result = training.fit(module, data(), settings, lambda _: None, SINGLE, StopRequest())
    metrics = {name: value for name, value in result.metrics.items() if name not in TIMES}
    return dict(module.state_dict()), state_of(recorded), metrics, result.held_out


def test_a_run_ends_with_the_same_bits_from_the_state_after_any_step(tmp_path, one_thread):
    """Within the first epoch, at its end, within the second epoch, and after the last step."""
    weights, *expected = run(tmp_path / "whole")
    assert expected[1]["pairs"] == 11
    for step in (2, 3, 5, TOTAL):
        folder = tmp_path / f"{step}"
        shutil.copytree(tmp_path / f"whole/states/step-{step:08d}", folder / f"states/step-{step:08d}")
        got, *rest = run(folder)
        assert same(got, weights), step
        assert rest == expected, step
