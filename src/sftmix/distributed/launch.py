"""Start the processes of a stage on this node, one for each device, and end all of them when one fails.

Why the program does not use torch's launcher (a user can: `distributed.shared`). In torch 2.10, the oldest version that
is supported, the launcher kills a process that is still saving after 30 seconds, imports torch in the parent process,
and leaves its processes alive if it is killed. It reports the process that ended first, which may have lost its
connection to the process that caused the failure.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.distributed.device import Device, num_cores
from sftmix.distributed.stopping import blocked, die_with, stop_code, stops_handed_on
from sftmix.errors import INTERRUPTED, TRY_AGAIN, InputError, StageError, Stopped

POLL, GRACE = 0.05, 3.0  # seconds: between two looks; for the other processes to end after one has failed
LAST_LINES = 20
FAILED = 3  # exit code of a process that has noted why it failed


def launch(
    module: str, content: Mapping[str, Any], device: Device, stop_signal: str, meeting: str | None = None
) -> int:
    """Run `python -m MODULE FILE LOCAL_RANK` for each device of this node, and wait for the end.

    Args:
        module: Name of a module that calls `be_rank` when it is run.
        content: What FILE contains, as JSON. `parent` (the id of this process) and `meeting` are added.
        stop_signal: Name of the signal that asks for a stop, beside SIGTERM and Ctrl-C.
        meeting: host:port at which the processes of several nodes find each other. On one node they use a file.

    Returns:
        The exit code of a stop that was asked for when the work was already done, or 0.

    Raises:
        InputError: If a process raised it.
        Stopped: If a stop was asked for. The work is saved.
        KeyboardInterrupt: If Ctrl-C came twice. The processes are killed.
        StageError: If a process failed otherwise. The message has the first cause.
    """
    folder = Path(tempfile.mkdtemp(prefix="sftmix-"))
    try:
        file = folder / "content.json"
        write_json(file, {**content, "parent": os.getpid(), "meeting": meeting or str(folder / "meeting")})
        ranks: list[subprocess.Popen[bytes]] = []
        with stops_handed_on(lambda: ranks, stop_signal) as came:
            try:
                for local_rank in range(device.num_local):
                    with blocked(signal.SIGINT):
                        ranks.append(_start(module, file, local_rank, device))
                _wait(ranks)
                codes = [rank.poll() for rank in ranks]
            finally:
                for rank in ranks:
                    rank.kill()
                for rank in ranks:
                    rank.wait()
        _raise_cause(folder, codes, came)
        return stop_code(came)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(module: str, file: Path, local_rank: int, device: Device) -> "subprocess.Popen[bytes]":
    # On a CPU errors are raised as exceptions too. NCCL only prints why it ends a process.
    environment = {"TORCH_CPP_LOG_LEVEL": "FATAL" if device.accelerator == "cpu" else "ERROR", **os.environ}
    if device.accelerator == "gpu" and "PYTORCH_CUDA_ALLOC_CONF" not in environment:
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # batches vary in length
    if device.accelerator == "cpu":
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // device.num_local)))
    command = [sys.executable, "-m", module, str(file), str(local_rank)]
    if local_rank == 0:
        return subprocess.Popen(command, env=environment)
    with file.with_name(f"output-{local_rank}.txt").open("wb") as output:  # each process would print the same
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


def _wait(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Wait until all processes have ended, or until some seconds after one has failed."""
    deadline = None
    while None in (codes := [rank.poll() for rank in ranks]):
        if any(code not in (None, 0, TRY_AGAIN) for code in codes) and deadline is None:
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(POLL)


def _raise_cause(folder: Path, codes: Sequence[int | None], came: Sequence[int]) -> None:
    """Raise the error that ended the processes before their work was done.

    Args:
        folder: Where processes note why they ended.
        codes: Exit codes; None for processes that were killed here.
        came: The signals that this process received.
    """
    if not any(code != 0 for code in codes):
        return
    ends = {k: read_json(file) for k in range(len(codes)) if (file := folder / f"end-{k}.json").is_file()}
    stopped = next((end["text"] for end in ends.values() if end["kind"] == "stopped"), None)
    # a process that receives a signal before it can handle signals has ended by the signal
    is_early = came and (not ends or {-number for number in (signal.SIGTERM, *came)} & set(codes))
    if stopped is not None or is_early:
        text = stopped or "stopped before the first step of this stage; complete stages and saved states are kept"
        code = stop_code(came) or TRY_AGAIN
        # every signal is sent on as SIGTERM
        raise Stopped(text.replace("stopped by SIGTERM", "interrupted") if code == INTERRUPTED else text, code)
    silent = next((k for k, code in enumerate(codes) if code and k not in ends), None)
    if silent is not None:  # the others only noted that they lost the connection to this process
        code = codes[silent] or 0
        output = folder / f"output-{silent}.txt"
        lines = output.read_text(errors="replace").splitlines()[-LAST_LINES:] if output.is_file() else []
        raise StageError("\n".join([f"rank {silent} of {len(codes)} {ending(code)}", *lines]))
    first = min(ends, key=lambda k: ends[k]["time"])
    if ends[first]["kind"] == "input":
        raise InputError(ends[first]["text"])
    raise StageError(f"rank {first} of {len(codes)} failed first:\n{ends[first]['text']}")


def ending(code: int) -> str:
    """Return how a process ended in words, from its exit code, which is negative after a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    hint = " (short of memory?)" if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{hint}"


def be_rank(work: Callable[[dict[str, Any], int], None]) -> None:
    """Call `work` with the content of FILE and the local rank as a process of `launch`; note why it ended, and exit."""
    file, local_rank = Path(sys.argv[1]), int(sys.argv[2])
    content = read_json(file)
    die_with(int(content["parent"]))
    code = FAILED
    try:
        work(content, local_rank)
        code = 0
    except Stopped as stopped:
        note_end(file, local_rank, "stopped", str(stopped))
        code = TRY_AGAIN
    except InputError as error:
        note_end(file, local_rank, "input", str(error))
    except BaseException:
        note_end(file, local_rank, "traceback", traceback.format_exc())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a library that wait for lost processes would keep this one alive


def note_end(file: Path, local_rank: int, kind: str, text: str) -> None:
    """Note beside FILE why this process ends, and when."""
    write_json(file.with_name(f"end-{local_rank}.json"), {"kind": kind, "text": text, "time": time.monotonic()})
