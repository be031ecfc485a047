"""An exponential moving average of the weights: its values, what is validated and returned, and a run that resumes."""

from pathlib import Path

import lightning as L
import pytest
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from forked import run_ranks
from modules import TOTAL, close, fit, fit_ranks, same, small_data, small_module, states_in
from sftmix.distributed.checkpoint_io import CheckpointFolderIO
from sftmix.distributed.ranks import SINGLE
from sftmix.errors import InputError
from sftmix.stages.tracking import instantiate_entries
from sftmix.training.callbacks import WeightAverage

DECAY = 0.7


class Recorder(L.Callback):
    """Keeps a copy of the model after each step, and torch's average of these models."""

    def __init__(self):
        self.weights, self.average = [], None

    def on_train_start(self, trainer, pl_module):
        self.average = AveragedModel(pl_module.lm, avg_fn=get_ema_avg_fn(DECAY))
        self.average.update_parameters(pl_module.lm)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.average.update_parameters(pl_module.lm)
        self.weights.append(weights_of(pl_module))


def weights_of(module):
    return {name: weight.detach().clone() for name, weight in module.lm.named_parameters()}


def trained(folder, *callbacks, lora=False, **arguments):
    module = small_module(lora=lora)
    fit(module, small_data(), folder, *callbacks, plugins=[CheckpointFolderIO()], **arguments)
    return module


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_model_ends_as_the_average_that_torch_computes_and_trains_as_without_it(tmp_path, lora):
    with_average, without = Recorder(), Recorder()
    module = trained(tmp_path, with_average, WeightAverage(DECAY), lora=lora)
    trained(tmp_path, without, lora=lora)
    assert all(same(mine, plain) for mine, plain in zip(with_average.weights, without.weights, strict=True))
    expected = dict(without.average.module.named_parameters())
    assert close(weights_of(module), expected)
    assert not close(weights_of(module), without.weights[-1])


def test_the_average_is_what_is_validated(tmp_path):
    module = trained(tmp_path, WeightAverage(DECAY))
    found = module.held_out
    fit(module, small_data(), tmp_path, max_epochs=1, limit_train_batches=1, num_sanity_val_steps=-1)
    assert module.val_loss_before == pytest.approx(found.loss(), rel=1e-6)
    assert trained(tmp_path).held_out.loss() != pytest.approx(found.loss(), rel=1e-3)


def test_a_run_that_resumes_ends_with_the_same_bits(tmp_path):
    """From a state within an epoch, at the end of one, and after the last step, when no step is left."""
    saved = tmp_path / "states"
    whole = weights_of(trained(tmp_path, WeightAverage(DECAY), states_in(saved, keep=TOTAL)))
    for step in (4, 6, TOTAL):
        states = states_in(tmp_path / str(step))
        resumed = trained(tmp_path, WeightAverage(DECAY), states, ckpt_path=saved / f"step-{step:08d}")
        assert same(weights_of(resumed), whole), step


@pytest.mark.slow
def test_shards_are_averaged_too_and_one_rank_continues_what_two_have_saved(tmp_path):
    saved, middle = tmp_path / "states", tmp_path / "states" / "step-00000004"

    def train(strategy, ranks, folder, **arguments):
        states = states_in(folder, ranks, keep=TOTAL)
        return fit_ranks(strategy, ranks, tmp_path, WeightAverage(DECAY), states, **arguments)

    def train_and_resume(ranks):
        first = train("fsdp", ranks, saved)
        return first, same(train("fsdp", ranks, tmp_path / "again", ckpt_path=middle), first)

    (sharded, is_same), *_ = run_ranks(2, train_and_resume, tmp_path)
    assert is_same
    expected = train("single", SINGLE, tmp_path / "single")
    assert close(sharded, expected)
    assert close(train("single", SINGLE, tmp_path / "one", ckpt_path=middle), expected)


def test_a_decay_out_of_range_is_refused(compose):
    entries = compose("callbacks=ema", "callbacks.ema.decay=1").callbacks
    with pytest.raises(InputError, match=r"^callbacks.ema: decay=1: expected at least 0 and below 1$"):
        instantiate_entries("callbacks", entries, L.Callback, Path())
