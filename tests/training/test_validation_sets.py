"""Validation sets of another origin in a plain Trainer: their losses, and that they change nothing else."""

import math

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from builders import cpu_trainer, random_examples
from forked import run_ranks
from modules import TOTAL, fit, same, small_data, small_module
from sftmix.data.shards import EncodedExamples
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.strategy import trainer_arguments
from sftmix.training.datamodule import ValidationSet
from sftmix.training.fit import quiet_lightning

pytestmark = pytest.mark.filterwarnings("ignore:.*every_n_train_steps.*")


def with_sets(*, held_out=True):
    """Return the small data with a set of five examples with subsets and one of three examples."""
    data = small_data()
    sets = {name: EncodedExamples.of(random_examples(n, seed=s)) for name, n, s in (("five", 5, 8), ("three", 3, 9))}
    data.val_sets = {
        "five": ValidationSet(sets["five"], {"confident": [0, 3], "unconfident": [1, 2, 4], "none": []}),
        "three": ValidationSet(sets["three"]),
    }
    if not held_out:
        data.val = data.val.select([])
    return data


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def validated(data):
    module = small_module(dropout=0.0)
    with quiet_lightning():
        (metrics, *_) = cpu_trainer().validate(module, datamodule=data, verbose=False)
    return module, metrics


def expected_loss(module, examples, chosen):
    """Return the loss in nats per token as transformers computes it, over some examples."""
    total, count = 0.0, 0
    for k in chosen:
        ids, start = torch.tensor([examples[k].input_ids]), examples[k].num_prompt_tokens
        labels = ids.clone()
        labels[:, :start] = -100
        with torch.no_grad():
            mean = module.lm.causal_lm.eval()(input_ids=ids, labels=labels).loss.item()
        number = len(examples[k].input_ids) - start
        total, count = total + mean * number, count + number
    return total / count


@pytest.mark.parametrize("held_out", [True, False])
def test_each_set_has_its_own_losses(held_out):
    data = with_sets(held_out=held_out)
    module, metrics = validated(data)
    five = data.val_sets["five"]
    chosen = {"": range(5), "_confident": five.subsets["confident"], "_unconfident": five.subsets["unconfident"]}
    for suffix, members in chosen.items():
        found = metrics[f"val_five/loss{suffix}"]
        assert found == pytest.approx(expected_loss(module, five.examples, members), rel=1e-5)
    three = expected_loss(module, data.val_sets["three"].examples, range(3))
    assert metrics["val_three/loss"] == pytest.approx(three, rel=1e-5)
    assert metrics["val_three/perplexity"] == pytest.approx(math.exp(three), rel=1e-5)
    assert ("val/loss" in metrics) is held_out
    assert not any("none" in name or "dataloader" in name for name in metrics)


def test_sets_change_neither_the_weights_nor_the_held_out_loss(tmp_path):
    losses, ends = [], []
    for data in (small_data(), with_sets()):
        module = small_module()
        trainer = fit(module, data, tmp_path, num_sanity_val_steps=-1)
        losses.append((module.val_loss_before, trainer.callback_metrics["val/loss"].item()))
        ends.append(weights(module))
    assert losses[0] == losses[1]
    assert same(*ends)


@pytest.mark.parametrize("step", [1, 4, TOTAL])
def test_a_run_with_sets_resumes_to_the_same_bits_and_losses(tmp_path, step):
    """Also if only the end of the run is left: the losses of the last pass are in the checkpoint."""
    whole = small_module()
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(whole, with_sets(), tmp_path, every, num_sanity_val_steps=-1)
    resumed = small_module()
    fit(resumed, with_sets(), tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", num_sanity_val_steps=-1)
    assert same(weights(resumed), weights(whole))
    assert resumed.val_sets_before == whole.val_sets_before
    assert set(whole.val_sets_before) == {"five", "three"}
    if step < TOTAL:  # the checkpoint of the last step is written before the last validation, which does not run again
        assert resumed.val_sets == whole.val_sets


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_have_the_losses_of_one_process(tmp_path, strategy):
    def losses(strategy, ranks):
        module = small_module(ranks, strategy=strategy, dropout=0.0)
        with quiet_lightning():
            trainer = cpu_trainer(**trainer_arguments(strategy, "cpu", "32-true", ranks))
            (metrics, *_) = trainer.validate(module, datamodule=with_sets(), verbose=False)
        return metrics, {name: result.examples for name, result in module.val_sets.items()}

    expected, members = losses("single", SINGLE)
    for got, found in run_ranks(2, lambda ranks: losses(strategy, ranks), tmp_path):
        assert got == pytest.approx(expected, rel=1e-5)
        assert found == members == {"five": [0, 1, 2, 3, 4], "three": [0, 1, 2]}
