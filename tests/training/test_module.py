"""SFTMixModule and SFTDataModule in a plain `L.Trainer`: epochs, validation, loggers, checkpoints, resume."""

import csv
import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.nn.utils import clip_grad_norm_

from builders import cpu_trainer
from forked import run_ranks
from modules import LR, SCHEDULE, STEPS_PER_EPOCH, TOTAL, close, fit, fit_ranks, same, small_data, small_module
from sftmix.distributed.checkpoint_io import CheckpointFolderIO
from sftmix.distributed.ranks import SINGLE
from sftmix.errors import InputError
from sftmix.functional.equations import LossSettings
from sftmix.training import module as module_file
from sftmix.training.fit import quiet_lightning
from sftmix.training.module import SFTMixModule, derived_seed
from sftmix.training.optim import OptimizerSettings, lr_factor

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*every_n_train_steps.*"),
    pytest.mark.filterwarnings("ignore:.*Experiment logs directory.*"),
]


class Recorder(L.Callback):
    """Keeps the learning rate and the loss of each step, and the steps after which validation ran."""

    def __init__(self):
        self.lr, self.losses, self.validated = {}, {}, []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.lr[trainer.global_step + 1] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.losses[trainer.global_step] = trainer.callback_metrics["train/loss"].item()

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with a checkpoint after every step and every epoch: torch's files, and folders."""
    found = {}
    for kind, plugins in (("file", []), ("folder", [CheckpointFolderIO()])):
        folder, module, recorder = tmp_path_factory.mktemp(kind), small_module(), Recorder()
        steps = ModelCheckpoint(folder / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
        epochs = ModelCheckpoint(folder / "epochs", "{epoch}", monitor="val/loss", save_top_k=-1)
        fit(module, small_data(), folder, recorder, steps, epochs, plugins=plugins)
        found[kind] = folder, recorder, weights(module)
    return found


NAMES = [*(f"steps/step={k}.ckpt" for k in range(1, TOTAL + 1)), *(f"epochs/epoch={k}.ckpt" for k in range(3))]


@pytest.mark.parametrize(
    ("kind", "num_workers", "name"),
    [*((kind, 0, name) for kind in ("file", "folder") for name in NAMES), *(("file", 1, name) for name in NAMES[1:4])],
)
def test_a_run_that_resumes_from_any_checkpoint_ends_with_the_same_bits(whole, tmp_path, kind, num_workers, name):
    folder, recorder, expected = whole[kind]
    module, resumed = small_module(), Recorder()
    plugins = [] if kind == "file" else [CheckpointFolderIO()]
    data = small_data(num_workers=num_workers)
    arguments = {"ckpt_path": folder / name, "plugins": plugins}
    trainer = fit(module, data, tmp_path, resumed, **arguments)
    assert trainer.global_step == TOTAL
    assert same(weights(module), expected)
    first = TOTAL - len(resumed.lr) + 1
    assert resumed.lr == {step: recorder.lr[step] for step in range(first, TOTAL + 1)}
    assert resumed.losses == {step: recorder.losses[step] for step in range(first, TOTAL + 1)}


def test_epochs_are_epochs_and_the_schedule_spans_all_of_them(whole):
    _, recorder, _ = whole["file"]
    assert recorder.lr == {k + 1: LR * lr_factor(k, TOTAL, SCHEDULE) for k in range(TOTAL)}
    assert recorder.validated == [3, 6, 9]


def test_loggers_and_callbacks_of_lightning_see_the_metrics(tmp_path):
    module, logger = small_module(), CSVLogger(tmp_path, name="logs", version="")
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="val/loss")
    stopping = EarlyStopping("val/loss", patience=0, min_delta=10.0)
    trainer = fit(module, small_data(), tmp_path, LearningRateMonitor(), checkpoint, stopping, logger=logger)
    assert trainer.global_step == 2 * STEPS_PER_EPOCH, "no epoch improves by 10 nats, so the second one is the last"
    with (tmp_path / "logs/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lrs = [float(row["lr-AdamW/pg1"]) for row in rows if row["lr-AdamW/pg1"]]
    assert lrs == pytest.approx([LR * lr_factor(k, TOTAL, SCHEDULE) for k in range(2 * STEPS_PER_EPOCH)])
    assert len([row for row in rows if row["train/loss"]]) == 2 * STEPS_PER_EPOCH
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    assert checkpoint.best_model_score.item() == pytest.approx(min(losses))
    assert (tmp_path / "logs/hparams.yaml").read_text().count("max_grad_norm: 0.5") == 1


def test_validate_before_fit_is_the_loss_that_transformers_computes(tmp_path):
    module, data = small_module(), small_data()
    with quiet_lightning():
        (metrics,) = cpu_trainer(default_root_dir=tmp_path).validate(module, data, verbose=False)
    nll, count = 0.0, 0
    for example in data.val:
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[0, : example.num_prompt_tokens] = -100
        with torch.no_grad():
            loss = module.lm.causal_lm.eval()(input_ids=ids, labels=labels).loss.item()
        nll, count = nll + loss * example.num_response_tokens, count + example.num_response_tokens
    assert metrics["val/loss"] == pytest.approx(nll / count, rel=1e-6)
    assert metrics["val/perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-6)


def test_validation_is_without_dropout_and_leaves_training_with_it(tmp_path):
    modes = []

    class Modes(SFTMixModule):
        def validation_step(self, batch, batch_idx):
            modes.append(("val", self.lm.causal_lm.training))
            super().validation_step(batch, batch_idx)

        def backward_of_step(self, batch):
            modes.append(("train", self.lm.causal_lm.training))
            return super().backward_of_step(batch)

    module = small_module()
    module.__class__ = Modes
    fit(module, small_data(), tmp_path, max_epochs=2)
    assert {mode for mode in modes if mode[0] == "val"} == {("val", False)}
    assert {mode for mode in modes if mode[0] == "train"} == {("train", True)}
    assert [name for name, _ in modes].count("train") == 2 * STEPS_PER_EPOCH


def test_gradients_are_clipped_to_the_norm_that_is_set(tmp_path, monkeypatch):
    seen = []

    def watched(parameters, max_norm):
        parameters = list(parameters)
        norm = clip_grad_norm_(parameters, max_norm)
        clipped = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters])).item()
        seen.append((norm.item(), clipped))
        return norm

    monkeypatch.setattr(module_file, "clip_grad_norm_", watched)
    for limit in (0.01, 1e6):
        module = small_module(optimizer=OptimizerSettings(lr=LR, max_grad_norm=limit))
        fit(module, small_data(), tmp_path, max_epochs=1)
        assert len(seen) == STEPS_PER_EPOCH
        assert all(clipped == pytest.approx(min(norm, limit), rel=1e-3) for norm, clipped in seen)
        assert all(norm > 0.01 for norm, _ in seen)
        seen.clear()


@pytest.mark.parametrize("changed", ["seed", "step"])
def test_dropout_depends_on_the_seed_and_on_the_step(tmp_path, changed):
    """Under dropout the same step has the same loss twice, and another loss for another seed or step."""
    losses = []

    class Repeated(SFTMixModule):
        offset = 0

        def training_step(self, batch, batch_idx):
            for offset in (0, 0, 1):
                seed = self.seed + offset if changed == "seed" else self.seed
                step = self.step + (offset if changed == "step" else 0)
                torch.manual_seed(derived_seed(seed, step))
                losses.append(self.backward_of_step(batch).loss.item())
            super().training_step(batch, batch_idx)
            losses.append(self.trainer.callback_metrics["train/loss"].item())

    module = small_module(dropout=0.5)
    module.__class__ = Repeated
    fit(module, small_data(), tmp_path, max_epochs=1, limit_train_batches=2)
    for first, again, other, of_the_step in (losses[:4], losses[4:]):
        assert first == again == pytest.approx(of_the_step)
        assert abs(other - first) > 1e-4


def test_overfit_batches_repeats_the_same_steps_and_the_schedule_fits(tmp_path):
    module, recorder, seen = small_module(), Recorder(), []

    class Batches(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append([micro.examples for micro in batch.micro_batches])

    trainer = fit(module, small_data(), tmp_path, recorder, Batches(), overfit_batches=2)
    assert trainer.global_step == 6
    assert seen[:2] == seen[2:4] == seen[4:]
    assert seen[0] != seen[1]
    assert recorder.lr == {k + 1: LR * lr_factor(k, 6, SCHEDULE) for k in range(6)}


def test_max_steps_shortens_the_schedule(tmp_path):
    module, recorder = small_module(), Recorder()
    fit(module, small_data(), tmp_path, recorder, max_steps=4)
    assert recorder.lr == {k + 1: LR * lr_factor(k, 4, SCHEDULE) for k in range(4)}


def test_hyperparameters_are_saved_and_a_checkpoint_can_be_loaded_without_a_trainer(whole):
    folder, _, expected = whole["file"]
    file = folder / f"steps/step={TOTAL}.ckpt"
    module = SFTMixModule.load_from_checkpoint(file, lm=small_module().lm, weights_only=True)
    assert same(weights(module), expected)
    assert module.loss == LossSettings(mu=0.2)
    assert module.optimizer == OptimizerSettings(lr=LR, max_grad_norm=0.5)
    assert module.scheduler == SCHEDULE
    assert module.seed == 3


def test_a_checkpoint_of_another_model_is_refused(whole):
    folder, _, _ = whole["file"]
    with pytest.raises(InputError, match=r"trained weights are missing \(.*lora_A.*expected all weights"):
        SFTMixModule.load_from_checkpoint(folder / "steps/step=1.ckpt", lm=small_module(lora=True).lm)


def test_frozen_weights_are_not_in_a_checkpoint(tmp_path):
    module = small_module(lora=True)
    trainer = fit(module, small_data(), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "lora.ckpt")
    content = torch.load(tmp_path / "lora.ckpt", weights_only=True)
    assert content["state_dict"]
    assert all("lora_" in name for name in content["state_dict"])
    assert content["optimizer_states"][0]["state"].keys() == content["state_dict"].keys()


def test_loaders_without_a_data_module_are_refused_in_one_line(tmp_path):
    module, data = small_module(), small_data()
    trainer = cpu_trainer(max_epochs=1, default_root_dir=tmp_path)
    data.trainer = trainer
    with quiet_lightning(), pytest.raises(InputError, match=r"^SFTMixModule: pass an SFTDataModule to the Trainer"):
        trainer.fit(module, data.train_dataloader())


def test_a_trainer_without_an_end_or_with_a_scaled_loss_is_refused(tmp_path):
    with pytest.raises(InputError, match="set max_epochs or max_steps"):
        fit(small_module(), small_data(), tmp_path, max_epochs=-1)
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(InputError, match="float16 needs a scaled loss"):
        fit(small_module(), small_data(), tmp_path, plugins=[scaled])


def test_a_run_that_goes_on_for_more_epochs_has_the_longer_schedule_at_once(whole, tmp_path):
    recorder, longer = Recorder(), TOTAL // STEPS_PER_EPOCH + 1
    checkpoint = whole["file"][0] / f"steps/step={TOTAL}.ckpt"
    fit(small_module(), small_data(), tmp_path, recorder, max_epochs=longer, ckpt_path=checkpoint)
    total = longer * STEPS_PER_EPOCH
    assert recorder.lr == {k + 1: LR * lr_factor(k, total, SCHEDULE) for k in range(TOTAL, total)}


def test_logging_can_be_turned_off(tmp_path):
    assert fit(small_module(), small_data(), tmp_path, max_steps=2, log_every_n_steps=0).global_step == 2


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_end_with_the_weights_of_one_process(tmp_path, strategy):
    """The default `use_distributed_sampler` leaves the steps as they are."""
    expected = fit_ranks("single", SINGLE, tmp_path)
    got = run_ranks(2, lambda ranks: fit_ranks(strategy, ranks, tmp_path), tmp_path)
    assert all(close(one, expected) for one in got)
