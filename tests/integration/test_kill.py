"""Killed anywhere, the same command ends with the same files."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from paths import ROOT
from sftmix.artifacts.tables import read_table
from sftmix.stages.pipeline import run_pipeline

SLOWED = """
import sys, runpy, time
import sftmix.training.scoring as scoring
scoring.BATCHES_PER_PART = 1
whole = scoring._score_batch
scoring._score_batch = lambda *a: (time.sleep(0.2), whole(*a))[1]
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


def start(overrides, root, script):
    command = [sys.executable, "-c", script, *overrides, f"root={root}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "waits_for", ["ntp-*.partial/logs", "confidence-*.partial/parts-02-*/*", "sftmix-*.partial/logs"]
)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(compose, small_overrides, tmp_path, waits_for):
    overrides = (*small_overrides, "confidence.batch_tokens=500")
    whole = run_pipeline(compose(*overrides, f"root={tmp_path / 'whole'}"))
    root = tmp_path / "killed"
    process = start(overrides, root, SLOWED)
    deadline = time.monotonic() + 180
    while not list(root.glob(waits_for)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(root.glob("sftmix-*/manifest.json"))
    again = start(overrides, root, SLOWED.replace("time.sleep(0.2)", "None"))
    out, _ = again.communicate(timeout=240)
    assert again.returncode == 0, out
    confidence, target = root / whole.confidence.folder.name, root / whole.target.folder.name
    expected = read_table(whole.confidence.folder / "confidence.parquet")
    got = read_table(confidence / "confidence.parquet")
    assert got == expected
    assert read_table(target / "split.parquet") == read_table(whole.target.folder / "split.parquet")
    weights = [load_file(folder / "model/model.safetensors") for folder in (target, whole.target.folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
