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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.config.schema import Config, to_dict
from sftmix.distributed.device import Device, num_cores
from sftmix.distributed.stopping import SAVING
from sftmix.errors import INTERRUPTED, TRY_AGAIN, InputError, StageError, Stopped

PROGRAM = ("-m", "sftmix.stages.rank")
POLL, GRACE = 0.05, 3.0  # seconds: between looks; in which others may end by themselves once one has failed
LAST_LINES = 20


def launch(spec: Mapping[str, Any], config: Config, device: Device) -> int:
    """Run a stage in a tree of processes of its own and wait for its end.

    Args:
        spec: the stage, as `StageSpec.as_dict` returns it.
        config: the whole configuration.
        device: which devices, and how many processes.

    Returns:
        The exit code of a stop that was asked for when the stage was already done, or 0.

    Raises:
        InputError: what a rank found wrong.
        Stopped: a stop was asked for; the stage is saved.
        KeyboardInterrupt: Ctrl-C came twice; the ranks were killed.
        StageError: a rank failed otherwise; the first cause first.
    """
    folder = Path(tempfile.mkdtemp(prefix="sftmix-"))
    try:
        file = folder / "task.json"
        content = {
            "task": spec,
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
                    with blocked(signal.SIGINT):
                        ranks.append(_start(file, local_rank, device))
                _wait(ranks)
                codes = [rank.poll() for rank in ranks]
            finally:
                _end(ranks)
        _tell(folder, codes, asked)
        return stop_code(asked)
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
    """Hand a request to stop on to the ranks, and yield the list of the signals that came."""
    came: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        hand_on_stop(number, came, ranks, SAVING)

    with handled((signal.SIGINT, signal.SIGTERM, signal.Signals[stop_signal]), hand_on):
        yield came


def hand_on_stop(number: int, came: list[int], processes: Sequence["subprocess.Popen[bytes]"], message: bytes) -> None:
    """Hand a signal on to processes as SIGTERM, which makes them save and end.

    Args:
        number: The signal.
        came: The signals before it. The signal is added.
        processes: Processes that are sent SIGTERM. They do not see SIGINT themselves (`blocked`), so a
            Ctrl-C of a terminal reaches each of them once.
        message: What is printed at the first Ctrl-C.

    Raises:
        KeyboardInterrupt: Ctrl-C came a second time.
    """
    if number == signal.SIGINT:
        if signal.SIGINT in came:
            raise KeyboardInterrupt
        os.write(2, message)
    came.append(number)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)


def stop_code(came: Sequence[int]) -> int:
    """Return the exit code of a stop that signals asked for, or 0 if none came."""
    return 0 if not came else INTERRUPTED if set(came) == {signal.SIGINT} else TRY_AGAIN


@contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Block signals. Processes that are started meanwhile never see them: their parent decides what they mean."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle signals. Earlier handlers are restored at the end. SIGINT stays ignored if it is ignored (`nohup`)."""
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, earlier in before.items():
            if number != signal.SIGINT or earlier is not signal.SIG_IGN:
                signal.signal(number, handler)
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


def _tell(folder: Path, codes: list[int | None], asked: Sequence[int]) -> None:
    """Raise the error that ended a stage before it was done.

    Args:
        folder: Where ranks write why they ended.
        codes: Exit codes; None for ranks that were killed here.
        asked: Signals that asked for a stop.
    """
    if not any(code != 0 for code in codes):
        return
    ends = {k: read_json(file) for k in range(len(codes)) if (file := folder / f"end-{k}.json").is_file()}
    stopped = next((end["text"] for end in ends.values() if end["kind"] == "stopped"), None)
    # a signal that came before a rank could handle it has ended that rank
    is_early = asked and (not ends or {-number for number in (signal.SIGTERM, *asked)} & set(codes))
    if stopped is not None or is_early:
        text = stopped or "stopped before a step was taken; what was saved earlier is there"
        code = stop_code(asked) or TRY_AGAIN
        # ranks are sent SIGTERM, whatever came here
        raise Stopped(text.replace("stopped by SIGTERM", "interrupted") if code == INTERRUPTED else text, code)
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
