"""What Weights & Biases is sent, read back from the files of offline runs."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offline_wandb import offline_runs
from paths import ROOT
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.errors import ConfigError, InputError, Stopped
from sftmix.provenance.runs import ExampleLosses
from sftmix.reports import dashboard
from sftmix.training.loggers import WandbRunLogger, finishing
from sftmix.training.module import SFTMixModule

SECRETS = {"HF_TOKEN": "hf_" + "s3cret" * 5, "WANDB_API_KEY": "k3y" * 13 + "0", "OPENAI_API_KEY": "sk-" + "0pen" * 9}
FIGURES = {"token_share", "ntp_loss_confident", "ntp_loss_unconfident", "loss", "grad_norm_ratio", "grad_cosine"}
NTP = ("recipe=ntp", "data.demo.num_examples=60", "data.epochs=2", "trainer.log_every_n_steps=1", "logger=wandb")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture(scope="module")
def tracked(compose, small_overrides, tmp_path_factory):
    """The three stages with everything logged: (plan, the offline run of each)."""
    from sftmix.stages.pipeline import run_pipeline

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SECRETS, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
            patch.setenv(name, value)
        root = tmp_path_factory.mktemp("tracked")
        diagnosed = ("callbacks=mixup_diagnostics", "callbacks.mixup_diagnostics.every_n_steps=2")
        logging = ("logger=wandb", "logger.wandb.group=mu-sweep", "trainer.log_every_n_steps=3", *diagnosed)
        plan = run_pipeline(compose(*small_overrides, f"root={root}", *logging))
    runs = {}
    for stage in ("reference", "confidence", "target"):
        (runs[stage],) = offline_runs(getattr(plan, stage).folder)
    return plan, runs


def test_every_stage_is_a_run_of_its_own_in_the_group_of_its_sweep(tracked):
    plan, runs = tracked
    assert len({run.run.run_id for run in runs.values()}) == 3
    for stage, run in runs.items():
        artifact = getattr(plan, stage)
        assert run.run.run_group == "mu-sweep"
        assert run.run.job_type == stage
        assert run.run.display_name == artifact.folder.name
        assert run.config["artifact"] == {"name": artifact.folder.name, "fingerprint": artifact.fingerprint}
        assert {"tiny", "demo", stage} <= set(run.run.tags)
        assert run.exit_code == 0
        assert run.metrics["*"][0] == "trainer/step"
        assert run.metrics["val/loss"] == ("trainer/step", {"min", "last"})
    assert "ntp" in runs["reference"].run.tags
    assert "sftmix" in runs["target"].run.tags


def test_the_config_is_the_resolved_one_and_no_secret_is_anywhere(tracked):
    plan, runs = tracked
    config = {key: value for key, value in runs["target"].config.items() if key not in ("_wandb", "artifact", "git")}
    assert config == read_json(plan.target.folder / "run.json")["config"]
    assert config["recipe"]["mixup"]["mu"] == 0.2
    for file in Path(plan.target.root).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [name for name, value in SECRETS.items() if value.encode() in content], file
    assert not runs["target"].run.git.remote_url, "the address of a remote may hold a token"


def test_the_history_is_that_of_the_csv_file(tracked):
    """Rows of one step are one row there; steps are counted from 1, in the file from 0."""
    plan, runs = tracked
    for stage in ("reference", "target"):
        with (getattr(plan, stage).folder / "logs/metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        expected: dict[int, dict[str, float]] = {}
        for row in rows:
            figures = {name: float(value) for name, value in row.items() if value and name != "step"}
            expected.setdefault(int(row["step"]) + 1, {}).update(figures)
        got = {}
        for row in runs[stage].history:
            assert row["_step"] == row["trainer/step"]
            got[row["_step"]] = {
                name: value
                for name, value in row.items()
                if not name.startswith(("_", "mixup/lam")) and name != "trainer/step"
            }
        assert got.keys() == expected.keys()
        for step, figures in expected.items():
            assert got[step] == pytest.approx(figures)
        assert "train/loss" in got[1]
        assert "val/loss" in got[max(got)]
    last = max(got)
    looked_at = {step for step, row in got.items() if "mixup/grad_cosine" in row}
    assert looked_at == {1, last, *range(2, last, 2)}
    assert {f"mixup/{name}" for name in FIGURES} <= set(got[1])
    assert not any(key.startswith("mixup/") for row in runs["reference"].history for key in row)


def test_lambda_is_a_histogram_of_the_steps_pairs(tracked):
    _, runs = tracked
    first = runs["target"].history[0]
    assert first["mixup/lam/_type"] == "histogram"
    assert sum(first["mixup/lam/values"]) == 8, "a step of 16 examples has so many pairs"
    assert first["mixup/lam/bins"][0] == 0
    assert first["mixup/lam/bins"][-1] == 1
    middles = (np.array(first["mixup/lam/bins"][1:]) + np.array(first["mixup/lam/bins"][:-1])) / 2
    mean = np.average(middles, weights=first["mixup/lam/values"])
    assert mean == pytest.approx(first["train/lam_mean"], abs=0.03)


def test_the_summary_is_what_the_run_ended_with(tracked):
    plan, runs = tracked
    summary, folder = runs["target"].summary, plan.target.folder
    metrics = read_json(folder / "metrics.json")
    for name, value in metrics.items():
        assert value is None or summary[f"metrics/{name}"] == pytest.approx(value), name
    assert summary["val/loss"]["last"] == pytest.approx(metrics["val_loss"])
    assert summary["train/loss"] == pytest.approx(metrics["train_loss_last_step"])
    split, val = read_table(folder / "split.parquet"), read_table(folder / "val.parquet")
    nll = dict(zip(val["example_id"], val["nll"], strict=True))
    loss = ExampleLosses(nll, dict(zip(val["example_id"], val["num_tokens"], strict=True)))
    for half in ("confident", "unconfident"):
        of_half = zip(split["example_id"], split["part"], split["subset"], strict=True)
        ids = [i for i, part, h in of_half if (part, h) == ("val", half)]
        assert summary[f"val/loss_{half}"] == pytest.approx(loss.over(ids))
    assert not [key for key in runs["reference"].summary if key.startswith("val/loss_")], "it has no halves"


def test_confidence_is_figures_a_histogram_and_a_table_of_the_two_ends(tracked):
    plan, runs = tracked
    run, folder = runs["confidence"], plan.confidence.folder
    examples = read_table(folder / "examples.parquet")
    values = np.array(examples["confidence"])
    assert run.summary["confidence/mean"] == pytest.approx(values.mean())
    assert run.summary["confidence/median"] == pytest.approx(np.median(values))
    assert run.summary["confidence/q05"] == pytest.approx(np.quantile(values, 0.05))
    (row,) = run.history
    assert row["confidence/histogram/_type"] == "histogram"
    assert sum(row["confidence/histogram/values"]) == len(values)
    assert row["confidence/extremes/_type"] == "table-file"
    (table,) = folder.glob(f"wandb/offline-run-*/files/{row['confidence/extremes/path']}")
    content = read_json(table)
    assert content["columns"] == ["end", "example_id", "confidence", "variability", "group", "instruction", "response"]
    order = np.argsort(-values, kind="stable")
    ids = [examples["example_id"][k] for k in (*order[:20], *order[::-1][:20])]
    assert [cells[1] for cells in content["data"]] == ids
    assert content["data"][0][2] == values.max()
    assert content["data"][20][2] == values.min()
    place = {i: k for k, i in enumerate(examples["example_id"])}
    assert all(cells[5] == examples["instruction"][place[cells[1]]] for cells in content["data"])


def test_the_dashboard_draws_what_a_target_logs(tracked):
    _, runs = tracked
    logged = {key for row in runs["target"].history for key in row} | set(runs["target"].summary)
    drawn = {key for _, keys in (*dashboard.LINES, *dashboard.BARS) for key in keys}
    assert drawn <= logged
    summaries = {column.removeprefix("summary:") for column in dashboard.COLUMNS if column.startswith("summary:")}
    assert summaries <= set(runs["target"].summary)


def test_text_of_a_table_holds_nothing_that_a_terminal_acts_on(tmp_path):
    run = WandbRunLogger(tmp_path, {"project": "p", "mode": "offline"})
    with finishing([run]):
        run.log_rows("t", ["a", "b"], [["\x1b[31mred\u202e", 1.5], [None, 2.0]], 0)
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert read_json(table)["data"] == [["\\x1b[31mred\\u202e", 1.5], [None, 2.0]]


def test_jobs_of_one_process_are_runs_of_their_own(run, tmp_path):
    """Also where the process has a run open that is none of ours."""
    import wandb

    own = wandb.init(dir=tmp_path, mode="offline", project="mine", settings=wandb.Settings(silent=True))
    try:
        plans = [run(*NTP, "logger.wandb.group=sweep", f"seed={seed}", root=tmp_path / "runs") for seed in (0, 1)]
    finally:
        own.finish()
    found = [offline_runs(plan.target.folder) for plan in plans]
    assert [len(runs) for runs in found] == [1, 1]
    (first,), (second,) = found
    assert len({first.run.run_id, second.run.run_id, own.id}) == 3
    (mine,) = offline_runs(tmp_path)
    assert mine.history == [], "nothing of a sweep landed in it"
    for seed, (plan, (one,)) in enumerate(zip(plans, found, strict=True)):
        assert one.config["seed"] == seed
        assert one.summary["val/loss"]["last"] == read_json(plan.target.folder / "metrics.json")["val_loss"]


@pytest.mark.slow
def test_processes_that_start_at_once_are_runs_of_their_own(small_overrides, tmp_path):
    root = ROOT
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = []
    for seed in (0, 1):
        command = [sys.executable, str(root / "train.py"), *small_overrides, *NTP, f"seed={seed}", f"root={tmp_path}"]
        with (tmp_path / f"output-{seed}.txt").open("w") as output:
            started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output))
    codes = [process.wait(timeout=300) for process in started]
    assert codes == [0, 0], [file.read_text() for file in tmp_path.glob("output-*.txt")]
    found = [run for folder in tmp_path.glob("ntp-*") for run in offline_runs(folder)]
    assert len(found) == len({run.run.run_id for run in found}) == 2
    assert {run.config["seed"] for run in found} == {0, 1}
    assert {run.run.display_name for run in found} == {folder.name for folder in tmp_path.glob("ntp-*")}


def test_a_run_that_was_stopped_says_so_and_ends_with_the_best_of_both_processes(run, tmp_path, monkeypatch):
    """The held-out loss of the epoch before the stop is the least: the lr grows too large for what comes after."""
    args = ("recipe=ntp", "data.demo.num_examples=60", "data.epochs=3", "logger=wandb", "model.lr=2.0")
    args = (*args, "scheduler.warmup_ratio=0.9", "trainer.save_every_n_steps=1")
    whole = SFTMixModule.training_step

    def training_step(self, batch, batch_idx):
        whole(self, batch, batch_idx)
        if self.step == self.trainer.num_training_batches + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SFTMixModule, "training_step", training_step)
        with pytest.raises(Stopped):
            run(*args)
    plan = run(*args)
    first, second = offline_runs(plan.target.folder)
    assert first.run.run_id == second.run.run_id
    assert (first.exit_code, second.exit_code) == (75, 0)
    assert max(row["_step"] for row in first.history) < min(row["_step"] for row in second.history)
    losses = [row["val/loss"] for one in (first, second) for row in one.history if "val/loss" in row]
    assert losses[0] == min(losses) < losses[-1]
    assert second.summary["val/loss"] == {"min": losses[0], "last": losses[-1]}


def test_a_key_that_is_missing_is_told_in_one_line_before_anything_is_trained(run, monkeypatch):
    import wandb

    def refused(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setattr(wandb, "init", refused)
    monkeypatch.setattr(SFTMixModule, "training_step", None)
    with pytest.raises(InputError, match="logger=wandb: No API key configured") as told:
        run("recipe=ntp", "logger=wandb", "logger.wandb.mode=online")
    assert "\n" not in str(told.value)


def test_the_diagnostics_need_no_account_and_a_recipe_with_mixup(run, compose):
    plan = run(
        "callbacks=mixup_diagnostics", "callbacks.mixup_diagnostics.every_n_steps=100", "data.demo.num_examples=60"
    )
    with (plan.target.folder / "logs/metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mixup/grad_cosine"]]
    last = read_json(plan.target.folder / "metrics.json")["steps"] - 1
    assert [int(row["step"]) for row in rows] == [0, last]
    assert not (plan.target.folder / "wandb").exists()
    with pytest.raises(ConfigError, match=r"callbacks\.mixup_diagnostics: it measures Mixup, and the recipe has no"):
        compose("recipe=ntp", "callbacks=mixup_diagnostics")
    with pytest.raises(ConfigError, match=r"callbacks\.mixup_diagnostics\.every_n_steps=0: expected"):
        compose("callbacks=mixup_diagnostics", "callbacks.mixup_diagnostics.every_n_steps=0")
