"""A stage in processes of its own: one a device, together with those of other nodes; all end when one fails.

Ranks are started directly, and torch's own launcher is not between: it would end a rank that saves at a stop after 30
seconds, and costs an import of torch a stage.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sftmix.artifacts import read_json, write_json
from sftmix.config import Config, to_dict
from sftmix.errors import TRY_AGAIN, InputError, StageError, Stopped
from sftmix.stages.device import Device, num_cores
from sftmix.stages.task import Task

PROGRAM = ("-m", "sftmix.stages.rank")
POLL, GRACE = 0.05, 3.0  # seconds: between looks; in which others may end by themselves once one has failed
LAST_LINES = 20


def launch(task: Task, config: Config, device: Device) -> bool:
    """Run a stage in a tree of processes of its own and wait for its end.

    Args:
        task: what is to be done.
        config: the whole configuration.
        device: which devices, and how many processes.

    Returns:
        Whether a stop was asked for that found nothing more to stop: the stage is done.

    Raises:
        InputError: what a rank found wrong.
        Stopped: a stop was asked for; the stage is saved.
        StageError: a rank failed otherwise; the first cause first.
    """
    folder = Path(tempfile.mkdtemp(prefix="sftmix-"))
    try:
        file = folder / "task.json"
        content = {
            "task": task.as_dict(),
            "config": to_dict(config),
            "device": device._asdict(),
            "arguments": sys.argv[1:],
            "parent": os.getpid(),
            "meeting": config.trainer.rdzv_endpoint or str(folder / "meeting"),
        }
        write_json(file, content)
        ranks: list[subprocess.Popen[bytes]] = []
        with _signals_handed_on(ranks, config.trainer.stop_signal) as asked:
            try:
                for local_rank in range(device.num_local):
                    ranks.append(_start(file, local_rank, device))
                _wait(ranks)
                codes = [rank.poll() for rank in ranks]
            finally:
                _end(ranks)
        _tell(folder, codes, bool(asked))
        return bool(asked)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(file: Path, local_rank: int, device: Device) -> "subprocess.Popen[bytes]":
    environment = {"TORCH_CPP_LOG_LEVEL": "FATAL", **os.environ}  # its errors come back as exceptions
    if device.accelerator == "cpu":
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // device.num_local)))
    command = [sys.executable, *PROGRAM, str(file), str(local_rank)]
    if local_rank == 0:
        return subprocess.Popen(command, env=environment)
    with file.with_name(f"output-{local_rank}.txt").open("wb") as output:  # each would say the same
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


@contextmanager
def _signals_handed_on(ranks: list["subprocess.Popen[bytes]"], stop_signal: str) -> Iterator[list[int]]:
    """Hand a request to stop on to the ranks; which signals came."""
    came: list[int] = []
    numbers = [signal.SIGTERM, signal.Signals[stop_signal]]

    def hand_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM)

    with handled(numbers, hand_on):
        yield came


@contextmanager
def handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a handler answer signals; those that were there come back."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _wait(ranks: list["subprocess.Popen[bytes]"]) -> None:
    """Wait for all; once one has failed the others have little time."""
    deadline = None
    while None in (codes := [rank.poll() for rank in ranks]):
        if any(code not in (None, 0, TRY_AGAIN) for code in codes) and deadline is None:
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(POLL)


def _end(ranks: list["subprocess.Popen[bytes]"]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
    for rank in ranks:
        rank.wait()


def _tell(folder: Path, codes: list[int | None], asked: bool) -> None:
    """Raise what ended a stage that did not come to its end.

    Args:
        folder: where ranks leave why they ended.
        codes: exit codes; None of those that had to be ended here.
        asked: whether a stop was asked for.
    """
    if not any(code != 0 for code in codes):
        return
    ends = {k: read_json(file) for k in range(len(codes)) if (file := folder / f"end-{k}.json").is_file()}
    stopped = next((end["text"] for end in ends.values() if end["kind"] == "stopped"), None)
    if stopped is not None or (asked and not ends):  # a signal came before a rank could listen to it
        raise Stopped(stopped or "stopped before a step was taken; what was saved earlier is there")
    if 128 + signal.SIGINT in codes or -signal.SIGINT in codes:
        raise KeyboardInterrupt
    silent = [k for k, code in enumerate(codes) if code and k not in ends]
    if silent:  # what the others found is that the connection to it is gone
        raise StageError(_last_words(folder, silent[0], int(codes[silent[0]] or 0), len(codes)))
    first = min(ends, key=lambda k: ends[k]["time"])
    if ends[first]["kind"] == "input":
        raise InputError(ends[first]["text"])
    raise StageError(f"rank {first} of {len(codes)} failed first:\n{ends[first]['text']}")


def _last_words(folder: Path, rank: int, code: int, number: int) -> str:
    cause = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (short of memory?)" if code == -signal.SIGKILL else ""
    file = folder / f"output-{rank}.txt"
    words = file.read_text(errors="replace").splitlines()[-LAST_LINES:] if file.is_file() else []
    return "\n".join([f"rank {rank} of {number} {cause}{hint}", *words])
