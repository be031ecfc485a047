"""Sweeps by the real command, on the embedded model."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

from paths import ROOT
from sftmix.artifacts.manifest import MANIFEST, read_json

SMALL = (
    "data.demo.num_examples=200",
    "data.epochs=1",
    "data.num_checkpoints=2",
    "model.init.hidden_size=32",
    "model.init.num_layers=1",
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
)


def start(*arguments, root, **more):
    command = [sys.executable, str(ROOT / "train.py"), *arguments, *SMALL, f"root={root}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def sweep(*arguments, root):
    process = start(*arguments, root=root)
    out = process.communicate(timeout=300)[0]
    return process.returncode, out


def manifest_of(root):
    (file,) = root.glob(f"sweeps/*/{MANIFEST}")
    return json.loads(file.read_text())


def test_a_list_shows_rows_and_commands_and_runs_nothing(tmp_path):
    code, out = sweep("ablation=mu", "model=tiny", "data=demo", "seed=0,1", "mode=list", root=tmp_path)
    assert code == 0
    assert out.startswith("ablation mu: 6 runs, 1 shared reference; 0 of 6 done\n  shared   waiting  ")
    assert re.search(
        r"\n  6        waiting  recipe.mixup.mu=0.5 seed=1\n +\S+/sftmix-tiny-demo-mu0.5-seed1-\w{8}\n", out
    )
    assert "recipe.mixup.mu=0.5 seed=1 hydra.mode=RUN\n" in out
    assert not (tmp_path / "sweeps").exists()
    code, out = sweep("mode=list", root=tmp_path)
    assert (code, out.split("\n")[0]) == (0, "sweep: 1 run, 1 shared reference; 0 of 1 done")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "recipe.mixup.mu=0.1,-1"], "config error: recipe.mixup.mu=-1.0: expected at least 0"),
        (["ablation=mu", "model=tiny", "data=demo", "recipe=ntp"], "config error: recipe.mixup.mu=0.1: recipe ntp has"),
        (["-m", "seed=0,1", "mode=certify"], "config error: mode=certify: it is for one run, not for a sweep"),
        (
            ["-m", "seed=0,1", "trainer=ddp", "trainer.num_nodes=2", "trainer.rdzv_endpoint=a:1", "trainer.devices=1"],
            "config error: trainer.num_nodes=2: a run of a sweep takes one node, slurm/train.sbatch runs",
        ),
        (["sweep.jobs=2"], "config error: sweep.jobs=2: this is one run, a sweep has -m or ablation="),
        (
            ["-m", "seed=0,1", "sweep=slurm", "sweep.jobs=2"],
            "config error: run seed=0: sweep.jobs=2: SLURM's own queue",
        ),
        (["-m", "seed=0,1", "sweep.gpus_per_job=2"], "config error: run seed=0: sweep.gpus_per_job=2: trainer.accel"),
        (["-m", "confidence.path=/a,/b"], "error: confidence.path=/a: no such file"),
        (
            ["mode=confidence", "recipe=ntp"],
            "config error: mode=confidence: nothing is scored, recipe ntp needs no con",
        ),
    ],
)
def test_what_cannot_be_run_is_told_before_any_row(tmp_path, arguments, says):
    code, out = sweep(*arguments, root=tmp_path)
    assert out.startswith(says)
    assert (code, out.count("\n")) == (2, 1)
    assert not list(tmp_path.glob("*-*"))


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """A sweep of four rows side by side, two of which fail once they run; own files set some values."""
    root = tmp_path_factory.mktemp("failing")
    own = root.parent / "own files"
    for name, text in {
        "experiment/small.yaml": "model: {init: {vocab_size: 400}}",
        "mine/seven.yaml": "split: {seed: 0}\nreference: {seed: 7}",
    }.items():
        (own / name).parent.mkdir(parents=True)
        (own / name).write_text(f"# @package _global_\n{text}\n")
    arguments = ("--config-dir", str(own), "experiment=small", "+mine=seven", "-m", "sweep.jobs=2")
    arguments += ("data.max_seq_len=64,4096", "recipe=ntp,sftmix")
    return root, arguments, *sweep(*arguments, root=root)


def test_a_failed_row_stops_no_other_and_is_told(failing):
    root, _, code, out = failing
    assert code == 1
    cause = "error: data.max_seq_len=4096: model tiny has 2048 positions, set data.max_seq_len=2048"
    states = {tuple(row["overrides"]): (row["state"], row["cause"]) for row in manifest_of(root)["runs"]}
    assert states[("data.max_seq_len=64", "recipe=ntp")] == ("done", None)
    assert states[("data.max_seq_len=64", "recipe=sftmix")] == ("done", None)
    assert states[("data.max_seq_len=4096", "recipe=ntp")][0] == "failed"
    assert cause in states[("data.max_seq_len=4096", "recipe=sftmix")][1]
    assert "\n2 of 4 runs done\n" in out
    assert re.search(r"\n  failed   data.max_seq_len=4096 recipe=ntp  .*" + re.escape(cause), out)


def test_rows_read_their_resolved_configuration_and_compose_nothing(failing):
    root, arguments, _, _ = failing
    (folder,) = root.glob("sweeps/*/configs")
    files = sorted(folder.iterdir())
    assert len(files) == 5, "four rows and two shared stages, without the row whose shared stage failed"
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    (run,) = [r for r in root.glob("sftmix-*") if (r / MANIFEST).is_file()]
    content, record = read_json(folder / f"{run.name}.json"), read_json(run / "run.json")
    assert content["config"] == record["config"]
    assert record["config"]["model"]["init"]["vocab_size"] == 400
    assert record["config"]["reference"]["seed"] == 7
    assert record["command"] == content["command"]
    assert content["command"][1:5] == [*arguments[:3], "+mine=seven"]
    assert "sweep" not in " ".join(content["command"])
    assert sorted(manifest_of(root)["composed_by"]) == sorted(arguments[:2])


def test_the_printed_command_of_a_row_composes_its_configuration(failing):
    root, arguments, _, _ = failing
    _, out = sweep(*arguments, "mode=list", root=root)
    commands = [line.strip() for line in out.splitlines() if line.strip().startswith("python train.py")]
    assert len(commands) == 6
    assert all("--config-dir '" in command for command in commands)
    command = commands[-1].replace("python train.py", f"{sys.executable} {ROOT / 'train.py'}")
    done = subprocess.run(["bash", "-c", f"{command} mode=list"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert manifest_of(root)["runs"][-1]["target"] in done.stdout


@pytest.mark.parametrize("named", ["hydra.searchpath=[FOLDER]", "hydra.searchpath=[file://FOLDER]"])
def test_a_search_path_is_part_of_the_printed_commands(tmp_path, named):
    own = tmp_path / "own, (2)"
    (own / "data").mkdir(parents=True)
    (own / "data/mymed.yaml").write_text("defaults: [demo, _self_]\nname: mymed\n")
    searched = named.replace("FOLDER", str(own))
    code, out = sweep("-m", searched, "data=mymed", "seed=0,1", "mode=list", root=tmp_path / "runs")
    assert code == 0, out
    command = [line for line in out.splitlines() if "hydra.searchpath=[" in line][-1].strip()
    command = command.replace("python train.py", f"{sys.executable} {ROOT / 'train.py'}")
    done = subprocess.run(["bash", "-c", f"{command} mode=list"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sftmix-tiny-mymed-mu0.2-seed1-" in done.stdout


def test_an_error_in_a_file_of_ones_own_is_one_line_before_any_row(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mymed.yaml").write_text("defaults: [demo, _self_]\nepoch: 3\n")
    code, out = sweep("--config-dir", str(tmp_path), "-m", "data=demo,mymed", root=tmp_path / "runs")
    assert (code, out.count("\n")) == (2, 1), out
    assert out.startswith("config error: run data=mymed: data.epoch: no such key, did you mean epochs?")
    assert not (tmp_path / "runs/sweeps").exists()


@pytest.mark.parametrize("name", ["quick", "llama_lora"])
def test_the_example_experiments_compose(compose, name):
    config = compose(f"experiment={name}")
    assert config.model.name == {"quick": "tiny", "llama_lora": "llama"}[name]
    assert (config.model.lora is not None) == (name == "llama_lora")


def test_the_same_command_runs_what_is_missing_alone(failing):
    root, arguments, _, _ = failing
    before = {folder: folder.stat().st_ctime_ns for folder in root.glob("*-tiny-*/model")}
    code, out = sweep(*arguments, root=root)
    assert code == 1
    assert out.startswith("sweep: 4 runs, 2 shared references; 2 of 4 done\n")
    assert {folder: folder.stat().st_ctime_ns for folder in root.glob("*-tiny-*/model")} == before


def test_two_of_the_same_sweep_at_once_are_one(tmp_path):
    arguments = ("-m", "seed=0,1", "recipe=ntp")
    first = start(*arguments, root=tmp_path)
    while not list(tmp_path.glob("sweeps/*/logs/*.log")):
        assert first.poll() is None
        time.sleep(0.05)
    code, out = sweep(*arguments, root=tmp_path)
    assert code == 2
    assert "another process runs this sweep; mode=list shows its progress" in out
    listed = sweep(*arguments, "mode=list", root=tmp_path)[1]
    assert "running  seed=0" in listed
    first.send_signal(signal.SIGTERM)
    out = first.communicate(timeout=100)[0]
    assert first.returncode == 75
    assert out.endswith("the sweep was stopped: run the same command again, it goes on\n")


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_ends_with_all_rows_and_one_reference(tmp_path):
    arguments = ("ablation=mu", "model=tiny", "data=demo", "seed=0,1")

    def killed_once(there):
        process = start(*arguments, root=tmp_path, start_new_session=True)
        while not there():
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.communicate(timeout=60)

    def two_done_and_one_begun():
        """A folder has its manifest before it is renamed, so that the partial folders are no complete ones."""
        done = [f.parent for f in tmp_path.glob("sftmix-*/manifest.json") if f.parent.suffix != ".partial"]
        return len(done) >= 2 and list(tmp_path.glob("sftmix-*.partial/logs"))

    killed_once(lambda: list(tmp_path.glob("ntp-*.partial/logs")))
    killed_once(two_done_and_one_begun)
    assert "cut off; the same command continues" in sweep(*arguments, "mode=list", root=tmp_path)[1]
    code, out = sweep(*arguments, root=tmp_path)
    assert code == 0
    assert "\n6 of 6 runs done\n" in out
    assert len(list(tmp_path.glob("ntp-*/manifest.json"))) == 1
    assert len(list(tmp_path.glob("sftmix-*/manifest.json"))) == 6
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_four_rows_side_by_side_share_nothing_by_accident(tmp_path):
    environment = {**os.environ, "WANDB_MODE": "offline"}
    process = start("-m", "seed=0,1,2,3", "logger=wandb", "sweep.jobs=4", root=tmp_path, env=environment)
    assert process.communicate(timeout=600)[0].count("done     seed=") == 8
    assert process.returncode == 0
    runs = sorted(tmp_path.glob("sftmix-*"))
    assert len(runs) == 4
    ids = [run.joinpath(".wandb_id").read_text() for run in runs]
    files = [list(run.glob("wandb/offline-run-*/run-*.wandb")) for run in runs]
    assert len(set(ids)) == 4
    assert [len(found) for found in files] == [1] * 4
    for own, found in zip(ids, files, strict=True):
        assert own in found[0].name
    weights = {(run / "model/model.safetensors").read_bytes() for run in runs}
    assert len(weights) == 4
