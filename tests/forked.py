"""Ranks as forks of a process that has everything imported: a test of several costs seconds, not a minute."""

import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sftmix.distributed.process_group import init_process_group
from sftmix.distributed.ranks import Ranks
from sftmix.distributed.stopping import die_with

POLL = 0.01


def start_ranks(number: int, work: Callable[[Ranks], Any], folder: Path) -> list[int]:
    """Fork so many ranks, each of which meets the others on the CPU and works; their process ids."""
    meeting = tempfile.mktemp(prefix="meeting-", dir=folder)
    sys.stdout.flush()
    sys.stderr.flush()
    started, parent = [], os.getpid()
    for rank in range(number):
        pid = os.fork()
        if pid == 0:
            die_with(parent)
            _be(Ranks(rank, rank, number, number), work, folder, meeting)
        started.append(pid)
    return started


def _be(ranks: Ranks, work: Callable[[Ranks], Any], folder: Path, meeting: str) -> None:
    code = 1
    try:
        with (folder / f"rank-{ranks.rank}.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        faulthandler.disable()
        torch.set_num_threads(1)  # the threads of the process that was forked are not there
        init_process_group(ranks, "cpu", meeting, 30)
        result = work(ranks)
        if result is not None:
            torch.save(result, folder / f"rank-{ranks.rank}.pt")
        code = 0
    except BaseException as error:
        traceback.print_exc()
        code = getattr(error, "exit_code", 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_ranks(started: list[int], seconds: float, *, kill_after: float | None = None) -> list[int]:
    """Wait for the ranks; their exit codes, negative for a signal. One that fails or is late ends the others.

    Args:
        started: process ids.
        seconds: the most they may take.
        kill_after: seconds after which all are killed by SIGKILL.
    """
    codes: dict[int, int] = {}
    begin = time.monotonic()
    while len(codes) < len(started):
        for pid in started:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - begin
        is_over = passed > (seconds if kill_after is None else kill_after)
        if is_over or any(codes.values()):
            for pid in started:
                if pid not in codes:
                    if not is_over:
                        time.sleep(1.0)  # let it find out by itself
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL)
    return [codes[pid] for pid in started]


def run_ranks(number: int, work: Callable[[Ranks], Any], folder: Path, seconds: float = 60.0) -> list[Any]:
    """What each of some ranks returns.

    Raises:
        AssertionError: one failed; with what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    codes = end_ranks(start_ranks(number, work, folder), seconds)
    said = "\n".join(f"rank {k}:\n{(folder / f'rank-{k}.txt').read_text()}" for k, code in enumerate(codes) if code)
    assert codes == [0] * number, f"{codes}\n{said}"
    files = [folder / f"rank-{k}.pt" for k in range(number)]
    return [torch.load(file) if file.is_file() else None for file in files]
