"""The processes that torchrun or srun has started: the first decides what is done, and all end together."""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from sftmix.distributed.device import num_cores
from sftmix.distributed.ranks import StartedRanks
from sftmix.errors import InputError, first_line

POLL = 0.1  # seconds between two looks into the store
GRACE = 5.0  # seconds for the other processes to notice that one has ended
LINGER = 1.0  # seconds that a process waits when another one has ended, so that the other one can print why


class SharedProcesses:
    """The processes that torchrun or srun has started.

    They find each other as `torch.distributed` does (`env://`), and send JSON to each other through the same store. A
    thread ends this process when another process has ended.

    Args:
        timeout: Seconds to wait for the other processes.

    Raises:
        InputError: If the other processes cannot be reached.
    """

    def __init__(self, started: StartedRanks, timeout: float) -> None:
        self.ranks = started.ranks
        if started.by == "srun":
            _set_variables(started)
        at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        try:
            store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
        except dist.DistError as error:
            raise InputError(
                f"trainer.launcher: the {self.ranks.world_size} processes of {started.by} did not find each other at "
                f"MASTER_ADDR:MASTER_PORT={at} within trainer.rdzv_timeout={timeout:g} seconds ({first_line(error)})"
            ) from None
        self.store = dist.PrefixStore("group", store)  # for the process group
        self._store = dist.PrefixStore("sftmix", store)
        self._num_messages = 0
        self._ends = False
        threading.Thread(target=self._watch, daemon=True).start()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, num_cores() // self.ranks.num_local))

    def send(self, content: Mapping[str, Any]) -> None:
        """Send JSON from the first process to the others."""
        self._store.set(f"message-{self._num_messages}", json.dumps(content))
        self._num_messages += 1

    def receive(self) -> dict[str, Any]:
        """Wait for the next JSON content of the first process."""
        key = f"message-{self._num_messages}"
        while not self._store.check([key]):
            time.sleep(POLL)
        self._num_messages += 1
        content = json.loads(self._store.get(key))
        assert isinstance(content, dict)
        return content

    def end(self, code: int) -> int | None:
        """End all other processes. The caller ends this one.

        Returns:
            None if this process is the first to end: it has to print why. Otherwise the exit code of the first one.
        """
        self._ends = True
        is_first, deadline = False, time.monotonic() + GRACE
        try:
            is_first = self._store.add("first", 1) == 1
            if is_first:
                self._store.set("code", str(code))
            while not self._store.check(["code"]) and time.monotonic() < deadline:
                time.sleep(POLL)
            code = int(self._store.get("code"))
            num_noticed = self._store.add("noticed", 1)
            while self.ranks.is_first and num_noticed < self.ranks.world_size and time.monotonic() < deadline:
                time.sleep(POLL)  # this process may hold the store, which the others still read
                num_noticed = self._store.add("noticed", 0)
        except dist.DistError:  # the process that holds the store has ended
            code = code if is_first else 1
        if is_first:
            return None
        time.sleep(LINGER)
        return code

    def _watch(self) -> None:
        """End this process when another process has ended."""
        code = 1
        try:
            while not self._store.check(["code"]):
                time.sleep(POLL)
                if self._ends:
                    return
            code = int(self._store.get("code"))
            if not self._ends:
                self._store.add("noticed", 1)
        except dist.DistError:
            pass  # the process that holds the store has ended
        if not self._ends:
            time.sleep(LINGER if code else 0)
            sys.stdout.flush()
            os._exit(code)


def _set_variables(started: StartedRanks) -> None:
    """Set the variables of `env://` from those of srun. MASTER_ADDR and MASTER_PORT are kept if they are set."""
    ranks, job, first = started.ranks, os.environ.get("SLURM_JOB_ID", "0"), "127.0.0.1"
    if ranks.num_nodes > 1:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_NODELIST"]
        first = SLURMEnvironment.resolve_root_node_address(nodes)
    os.environ.update(RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world_size), LOCAL_RANK=str(ranks.local_rank))
    os.environ.setdefault("MASTER_ADDR", first)
    os.environ.setdefault("MASTER_PORT", str(15000 + int(job[-4:])))
