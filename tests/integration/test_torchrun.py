"""train.py started by torchrun, and by srun (two processes with its variables)."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launched import ends_of, start_as, weights_of

TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2")
RECIPE = ("recipe=ntp", "trainer=ddp", "trainer.accelerator=cpu", "trainer.save_every_n_steps=2")


def run(conf, *arguments, **options):
    """Run Python in the repository; (exit code, standard output, standard error)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return ends_of(
        [
            subprocess.Popen(
                command,
                cwd=conf.parent,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **options,
            )
        ]
    )[0]


@pytest.fixture(scope="module")
def torchrun_run(small_overrides, conf, tmp_path_factory):
    """An NTP run of two processes that torchrun has started: its root and its standard output."""
    root = tmp_path_factory.mktemp("torchrun")
    code, output, errors = run(conf, *TORCHRUN, "train.py", *small_overrides, *RECIPE, f"root={root}")
    assert code == 0, errors
    return root, output


def test_a_run_under_torchrun_prints_once(torchrun_run):
    _, output = torchrun_run
    assert output.count("target      tuning tiny by next-token prediction") == 1
    assert "device      the CPU, 2 processes, DDP" in output


@pytest.mark.slow
def test_a_stop_under_srun_saves_and_own_processes_continue_to_the_weights_of_torchrun(
    torchrun_run, small_overrides, conf, tmp_path
):
    arguments = ["train.py", *small_overrides, *RECIPE, f"root={tmp_path}"]
    processes = start_as("srun", arguments, cwd=conf.parent)
    while not any(tmp_path.glob("*.partial/states/*/complete.json")):
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    (code, output, errors), follower = ends_of(processes)
    assert (code, follower) == (75, (75, "", "")), (output, errors)
    assert "which is saved: run the same command again" in errors
    assert "Traceback" not in errors
    code, output, errors = run(conf, *arguments, "trainer.devices=2")
    assert code == 0, errors
    assert "goes on after step" in output
    assert weights_of(tmp_path, "ntp") == weights_of(torchrun_run[0], "ntp")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["trainer=gpu"], "config error: trainer.strategy=single: srun has started 2 processes, choose trainer=ddp"),
        slow(["trainer.devices=3"], "config error: trainer.devices=3: srun has started 2 processes on each node"),
        slow(["mode=certify"], "config error: mode=certify: it starts its own processes"),
        slow(["-m", "seed=0,1"], "config error: srun: a sweep (-m, ablation=) starts its own processes"),
        (["data.template=none"], "error: data.template=none: no such template"),
        slow(["recipe.lr=x"], "config error: "),
    ],
)
def test_an_error_under_srun_is_printed_once(conf, tmp_path, overrides, line):
    ends = ends_of(start_as("srun", ["train.py", *overrides, f"root={tmp_path}"], cwd=conf.parent))
    (code, output, errors), follower = ends
    assert code == 2
    assert follower == (2, "", "")
    assert output == ""
    assert errors.startswith(line)
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("launcher", "line"), [("auto", "config error: environment: RANK set"), ("own", "error: data")]
)
def test_variables_of_another_program_are_refused_or_ignored(conf, tmp_path, monkeypatch, launcher, line):
    monkeypatch.setenv("RANK", "0")
    code, _, errors = run(conf, "train.py", "data.template=none", f"trainer.launcher={launcher}", f"root={tmp_path}")
    assert code == 2
    assert errors.startswith(line)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_all_stages_under_torchrun_give_the_weights_of_two_devices(small_overrides, conf, tmp_path, strategy):
    common = ["train.py", *small_overrides, f"trainer={strategy}", "trainer.accelerator=cpu"]
    shared = run(conf, *TORCHRUN, *common, f"root={tmp_path / 'shared'}")
    own = run(conf, *common, "trainer.devices=2", f"root={tmp_path / 'own'}")
    assert (shared[0], own[0]) == (0, 0), (shared[2], own[2])
    for kind in ("ntp", "sftmix"):
        assert weights_of(tmp_path / "shared", kind) == weights_of(tmp_path / "own", kind)
