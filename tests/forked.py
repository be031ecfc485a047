"""Ranks as forks of a process that has imported everything, so that a test of several ranks takes seconds."""

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


def start_ranks(num_ranks: int, work: Callable[[Ranks], Any], folder: Path) -> list[int]:
    """Fork ranks that form a process group on the CPU and call `work`; return their process ids."""
    meeting = tempfile.mktemp(prefix="meeting-", dir=folder)
    sys.stdout.flush()
    sys.stderr.flush()
    started, parent = [], os.getpid()
    for rank in range(num_ranks):
        pid = os.fork()
        if pid == 0:
            die_with(parent)
            _be(Ranks(rank, rank, num_ranks, num_ranks), work, folder, meeting)
        started.append(pid)
    return started


def _be(ranks: Ranks, work: Callable[[Ranks], Any], folder: Path, meeting: str) -> None:
    code = 1
    try:
        with (folder / f"rank-{ranks.rank}.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        faulthandler.enable(2)  # a signal such as SIGSEGV leaves the stack of each thread in the file
        torch.set_num_threads(1)  # a fork has no threads of its parent
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
    """Wait for the ranks and return their exit codes, negative for a signal. A rank that fails or is late ends all.

    Args:
        started: Process ids.
        seconds: Time limit.
        kill_after: Seconds after which all are killed by SIGKILL.
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
                        time.sleep(1.0)  # for its own error
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL)
    return [codes[pid] for pid in started]


def run_ranks(num_ranks: int, work: Callable[[Ranks], Any], folder: Path, seconds: float = 60.0) -> list[Any]:
    """Return what `work` returns on each rank.

    Ranks are started once more where one ended by SIGSEGV: pytest has threads of other tests, which a fork does not
    have. This was seen once; 240 further pairs of ranks of that test ended well. A fault of `work` crashes both times.

    Raises:
        AssertionError: A rank failed. Its output is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    codes = end_ranks(start_ranks(num_ranks, work, folder), seconds)
    if -signal.SIGSEGV in codes:
        codes = end_ranks(start_ranks(num_ranks, work, folder), seconds)
    printed = "\n".join(f"rank {k}:\n{(folder / f'rank-{k}.txt').read_text()}" for k, code in enumerate(codes) if code)
    assert codes == [0] * num_ranks, f"{codes}\n{printed}"
    files = [folder / f"rank-{k}.pt" for k in range(num_ranks)]
    return [torch.load(file) if file.is_file() else None for file in files]
