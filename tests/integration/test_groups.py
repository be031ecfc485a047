"""Callbacks, loggers, schedules and experiments of a config take effect: in a run, a sweep, and on two processes."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from builders import fit
from paths import ROOT
from sftmix.config.schema import to_dict
from sftmix.distributed.checkpoint_io import CheckpointFolderIO
from sftmix.errors import ConfigError
from sftmix.stages.context import RankContext, RunContext
from sftmix.stages.device_choice import choose_device
from sftmix.stages.pipeline import run_pipeline
from sftmix.stages.split import split_examples
from sftmix.stages.target import training_examples
from sftmix.stages.train import build_data, build_module
from sftmix.training.optim import SchedulerSettings, lr_factor

EPOCHS, STEPS_PER_EPOCH = 3, 4
FEW = ("data.demo.num_examples=60", f"data.epochs={EPOCHS}", "trainer.log_every_n_steps=1")  # 4 steps an epoch
PACKAGE = '''
import lightning as L

class EpochNotes(L.Callback):
    """Writes a line for each epoch, from each rank."""

    def __init__(self, text):
        self.text = text

    def on_train_epoch_end(self, trainer, pl_module):
        with open(f"{trainer.default_root_dir}/notes-{trainer.global_rank}.txt", "a") as file:
            file.write(f"{self.text} {trainer.current_epoch}\\n")
'''
FILES = {
    "callbacks/mine.yaml": "mine: {_target_: my_package.notes.EpochNotes, text: epoch}\n",
    "logger/more.yaml": """
more: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: null, name: more, version: ""}
""",
    "experiment/mine.yaml": """
# @package _global_
defaults: [{override /scheduler: linear}]
recipe: {mixup: {mu: 0.7}}
""",
}


@pytest.fixture
def own(tmp_path):
    """A folder of configs and a package of a user."""
    (tmp_path / "code/my_package").mkdir(parents=True)
    (tmp_path / "code/my_package/notes.py").write_text(PACKAGE)
    for name, text in FILES.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).write_text(text)
    return tmp_path / "own"


def metrics(file):
    """The rows of a metrics.csv that hold a training loss."""
    with file.open(newline="") as handle:
        return [row for row in csv.DictReader(handle) if row["train/loss"]]


HOW = {  # only the single run tunes a reference
    "single run": (),
    "sweep": ("split.by=random", "-m", "seed=0,1"),
    "two processes": ("split.by=random", "trainer=ddp", "trainer.devices=2"),
}


@pytest.mark.parametrize("how", ["single run", *(pytest.param(how, marks=pytest.mark.slow) for how in list(HOW)[1:])])
def test_own_callback_logger_and_experiment_and_early_stopping(own, small_overrides, tmp_path, how):
    """The reference has no callbacks, so it keeps all its steps. The target ends when nothing improves by 10 nats."""
    groups = ("callbacks=[mine,early_stopping]", "logger=[csv,more]", "experiment=mine")
    arguments = ["--config-dir", str(own), *groups, "callbacks.early_stopping.min_delta=10.0"]
    arguments += [*small_overrides, *FEW, "trainer.accelerator=cpu", f"root={tmp_path / 'runs'}", *HOW[how]]
    environment = {**os.environ, "PYTHONPATH": str(own.parent / "code"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    references = list((tmp_path / "runs").glob("ntp-*"))
    assert len(references) == (1 if how == "single run" else 0)
    for reference in references:
        assert len(metrics(reference / "logs/metrics.csv")) == EPOCHS * STEPS_PER_EPOCH
        assert not list(reference.glob("notes-*")), "callbacks are of the target only"
    targets = list((tmp_path / "runs").glob("sftmix-*"))
    assert len(targets) == (2 if how == "sweep" else 1)
    for target in targets:
        assert len(metrics(target / "logs/metrics.csv")) == 2 * STEPS_PER_EPOCH
        assert json.loads((target / "metrics.json").read_text())["steps"] == 2 * STEPS_PER_EPOCH
        assert len(metrics(target / "more/metrics.csv")) >= 2 * STEPS_PER_EPOCH - 1
        notes = sorted(target.glob("notes-*"))
        assert len(notes) == (2 if how == "two processes" else 1)
        assert all(file.read_text() == "epoch 0\nepoch 1\n" for file in notes)
        config = json.loads((target / "run.json").read_text())["config"]
        assert (config["recipe"]["mixup"]["mu"], config["scheduler"]["shape"]) == (0.7, "linear")


@pytest.fixture
def run(compose, small_overrides, tmp_path):
    """Run the pipeline with a random split, and return its config and the folder of the target."""

    def ran(*overrides):
        given = (*small_overrides, *FEW, "split.by=random", f"root={tmp_path / 'runs'}", *overrides)
        config = compose(*given)
        return config, run_pipeline(config).target.folder

    return ran


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_a_checkpoint_of_modelcheckpoint_is_a_folder_that_a_plain_trainer_continues(run, tmp_path):
    config, folder = run("callbacks=checkpoint", "callbacks.checkpoint.save_top_k=-1")
    checkpoints = sorted(folder.glob("epoch=*"))
    assert [c.name for c in checkpoints] == [f"epoch={k}-step={STEPS_PER_EPOCH * (k + 1)}.ckpt" for k in range(EPOCHS)]
    assert all({file.suffix for file in c.iterdir()} == {".safetensors", ".json"} for c in checkpoints)
    assert not [file for file in folder.rglob("*") if file.is_file() and file.suffix in (".ckpt", ".pt", ".bin")]
    context, rank = RunContext(config), RankContext(choose_device(config.trainer))
    module, device = build_module(config, context, rank)
    encoded = context.encoded(config.model)
    examples = training_examples(config, encoded.train, split_examples(context, None))
    data = build_data(config, encoded, examples, device)
    arguments = {"max_epochs": EPOCHS, "plugins": [CheckpointFolderIO()], "default_root_dir": tmp_path}
    trainer = fit(module, data, ckpt_path=str(checkpoints[0]), **arguments)
    assert trainer.global_step == EPOCHS * STEPS_PER_EPOCH
    weights = module.lm.causal_lm.state_dict()
    for name, weight in load_file(folder / "model/model.safetensors").items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize(
    ("choice", "steps"), [("limit", 2 * EPOCHS), ("profile", EPOCHS * STEPS_PER_EPOCH), ("overfit", 20 * 2)]
)
def test_debug_runs(run, choice, steps):
    more = ("trainer.limit_train_batches=2",) if choice == "limit" else ()
    more += ("data.epochs=20", "optimizer.lr=1e-2") if choice == "overfit" else ()
    _, folder = run(f"debug={choice}", *more)
    rows = metrics(folder / "logs/metrics.csv")
    assert len(rows) == steps
    if choice == "overfit":
        assert float(rows[-1]["train/ntp_loss"]) < 0.5 * float(rows[0]["train/ntp_loss"])
    assert bool(list(folder.glob("*profile*.txt"))) == (choice == "profile")


@pytest.mark.parametrize(
    ("name", "ratios"), [("linear", (0.1, 0.25)), ("cosine", (0.2, 0.5)), ("constant", (0.5, 0.0))]
)
def test_the_learning_rate_of_each_step_is_that_of_the_schedule(run, name, ratios):
    warmup, least = ratios
    config, folder = run(f"scheduler={name}", f"scheduler.warmup_ratio={warmup}", f"scheduler.min_lr_ratio={least}")
    total = EPOCHS * STEPS_PER_EPOCH
    schedule = SchedulerSettings(**to_dict(config.scheduler))
    assert schedule == SchedulerSettings(name, warmup, least)
    rates = [float(row["train/lr"]) for row in metrics(folder / "logs/metrics.csv")]
    assert rates == pytest.approx([config.optimizer.lr * lr_factor(k, total, schedule) for k in range(total)], rel=1e-9)


def test_a_constant_schedule_refuses_a_final_learning_rate(compose):
    with pytest.raises(ConfigError, match=r"scheduler\.min_lr_ratio=0\.1: scheduler=constant ends at the peak"):
        compose("scheduler=constant", "scheduler.min_lr_ratio=0.1")
