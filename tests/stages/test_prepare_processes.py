"""Processes that tokenize: the same shards, errors in one line, interrupted calls, no process left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prepared import encoded_of, end_process, folders, tokens
from sftmix.errors import InputError
from sftmix.stages import prepare as dataset


def test_several_processes_give_the_same(context, tmp_path, monkeypatch):
    alone = encoded_of(context(f"root={tmp_path / 'alone'}"))
    monkeypatch.setattr(dataset, "SHARD_EXAMPLES", 16)
    several = encoded_of(context("data.num_workers=2"))
    assert len(list(folders(tmp_path, "tokens")[0].glob("*.arrow"))) > 2
    assert tokens(several) == tokens(alone)
    assert several.census.as_dict() == alone.census.as_dict()


def test_a_shard_is_cut_by_its_text_too(context, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_CHARACTERS", 200)
    assert sum(map(len, tokens(encoded_of(context())))) == 60
    assert len(list(folders(tmp_path, "examples")[0].glob("*.arrow"))) > 5


def test_an_error_in_a_worker_is_the_one_line_it_is_here(context, monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "SHARD_EXAMPLES", 16)
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"rows\.jsonl row 1: \d+ prompt and \d+ response tokens, expected"):
            encoded_of(context("data.overlong=error", "data.max_seq_len=20", f"data.num_workers={workers}"))
    assert not folders(tmp_path, "tokens"), "nothing looks complete"


def test_a_worker_that_is_killed_is_one_line(context, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_EXAMPLES", 16)
    monkeypatch.setattr(dataset, "_encode_in_worker", end_process)
    with pytest.raises(InputError, match=r"data\.num_workers=2: a process that tokenizes was killed"):
        encoded_of(context("data.num_workers=2"))


def test_an_interrupted_call_keeps_the_shards_it_has_finished(context, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_EXAMPLES", 16)
    whole, calls = dataset.Encoder.fit, []

    def killed(self, examples, census):
        calls.append(len(examples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, examples, census)

    monkeypatch.setattr(dataset.Encoder, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        encoded_of(context())
    encoded = encoded_of(context())
    assert calls == [16, 16, 16, 16, 12]
    assert sum(map(len, tokens(encoded))) == 60


SLOW = """
import os, time
from pathlib import Path

class Slow:
    def __init__(self, folder):
        self.folder = folder
    def fit(self, examples, census):
        (self.folder / f"aside-{os.getpid()}").touch()
        (self.folder / f"aside-{os.getpid()}").rename(self.folder / f"worker-{os.getpid()}")
        time.sleep(600)
"""
PARENT_OF_WORKERS = """
import sys
from pathlib import Path
from sftmix.cli.program import errors_in_one_line
from sftmix.data.demo import demo_rows
from sftmix.data.shards import EXAMPLES, example_columns, write_shard
from sftmix.stages.prepare import _encode_shards
from sftmix.distributed.stopping import StopRequest
from slow import Slow
folder = Path(sys.argv[1])
tasks = []
for name in "ab":
    write_shard(folder / f"{name}.arrow", EXAMPLES, example_columns([]))
    tasks.append((folder / f"{name}.arrow", folder / f"{name}-tokens.arrow", 0))
with StopRequest(["SIGTERM", "SIGUSR2"]).listening(), errors_in_one_line():
    list(_encode_shards(Slow(folder), tasks, 2))
"""


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("is_early", [False, True], ids=["at work", "starting"])
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGKILL, -9, ""),
        (signal.SIGTERM, 75, "stopped by SIGTERM: run the same command again, it goes on\n"),
        (signal.SIGUSR2, 75, "stopped by SIGUSR2: run the same command again, it goes on\n"),
        (signal.SIGINT, 130, "interrupted: the same command goes on with what is not done\n"),
    ],
)
def test_processes_that_tokenize_end_with_their_parent(tmp_path, number, code, says, is_early):
    """A signal other than SIGKILL reaches the workers too, as by a terminal or SLURM."""
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PARENT_OF_WORKERS, str(tmp_path)]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 120
    while len(children.read_text().split()) < 3 if is_early else len(list(tmp_path.glob("worker-*"))) < 2:
        assert parent.poll() is None, parent.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    pids = children.read_text().split()
    assert len(pids) == 3, "two workers, and the process by which multiprocessing cleans up"
    if number == signal.SIGKILL:
        parent.kill()
    else:
        os.killpg(parent.pid, number)
    _, said = parent.communicate(timeout=60)
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert parent.returncode == code
    if number != signal.SIGKILL:
        assert said == says
