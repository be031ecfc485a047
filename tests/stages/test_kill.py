"""Killed anywhere, the same command ends with the same files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftmix.artifacts import read_table

ROOT = Path(__file__).parents[2]
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
    command = [sys.executable, *(["-c", script] if script else ["train.py"]), *overrides, f"root={root}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "waits_for", ["ntp-*.partial/logs", "confidence-*.partial/parts-02/*", "sftmix-*.partial/logs"]
)
def test_a_run_that_is_killed_goes_on_to_the_same_files(small_run, small_overrides, tmp_path, waits_for):
    _, plan = small_run
    overrides = (*small_overrides, "confidence.batch_tokens=500")
    process = start(overrides, tmp_path, SLOWED)
    deadline = time.monotonic() + 180
    while not list(tmp_path.glob(waits_for)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("sftmix-*/manifest.json"))
    again = start(overrides, tmp_path, None)
    out, _ = again.communicate(timeout=240)
    assert again.returncode == 0, out
    (target,) = tmp_path.glob("sftmix-*")
    (confidence,) = tmp_path.glob("confidence-*")
    whole = {p.name: p for p in (plan.target.folder, plan.confidence.folder)}
    assert read_table(target / "split.parquet")["half"] == read_table(plan.target.folder / "split.parquet")["half"]
    assert {target.name, confidence.name} == set(whole), "batch_tokens changes no fingerprint"
    expected = read_table(plan.confidence.folder / "confidence.parquet")
    got = read_table(confidence / "confidence.parquet")
    assert got["example_id"] == expected["example_id"]
    assert got["nll"] == pytest.approx(expected["nll"], rel=1e-5)
