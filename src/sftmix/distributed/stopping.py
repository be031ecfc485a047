"""How signals, or the end of the parent process, end a run so that the same command continues the run.

SIGTERM and `trainer.stop_signal` end a run with exit code 75, Ctrl-C with 130. While a model is trained or examples are
scored, the run ends after the next step, when its work is saved. At any other time the run ends at once, and the same
command makes again what a stage has not completed. A second Ctrl-C always ends the run at once.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, ClassVar

from sftmix.errors import INTERRUPTED, TRY_AGAIN, Stopped

if TYPE_CHECKING:
    import subprocess

PR_SET_PDEATHSIG = 1
ORPHAN = 3  # exit code of a process whose parent has ended before it
WATCH = 1.0  # seconds between looks at the parent
PARENT = "SFTMIX_PARENT"  # environment variable: process id of the sweep that started a program
SAVING = b"interrupt: saving at the next step, then ending; a second Ctrl-C ends at once\n"


def end_at_signals(*names: str) -> None:
    """End this process with one line at Ctrl-C or at named signals, which end with exit code 75.

    This is for the start of a program, when no work can be lost. `StopRequest.listening` replaces these handlers.
    Signals that are ignored stay ignored.
    """

    def end(number: int, frame: FrameType | None) -> None:
        text = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        os.write(2, f"{text}: run the same command again\n".encode())
        os._exit(INTERRUPTED if number == signal.SIGINT else TRY_AGAIN)

    for number in (*(signal.Signals[name] for name in names), signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


class StopRequest:
    """Whether this process was asked to stop, and by what.

    Args:
        signals: Names of the signals that ask for a stop with exit code 75.
    """

    _is_ending: ClassVar[bool] = (
        False  # of the process: a stop unwinds the stack, which a second signal must not disturb
    )

    def __init__(self, signals: Sequence[str] = ()) -> None:
        self.signals = [signal.Signals[name] for name in signals]
        self.asked = False  # one of the signals came
        self.interrupted = False  # Ctrl-C (SIGINT) came
        self.waits_for_step = False  # a stop waits for the next call of `asked_of_any` instead of ending the process

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals and Ctrl-C, if this is the main thread. Earlier handlers are restored at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (*self.signals, signal.SIGINT)}
        StopRequest._is_ending = False
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Install the handlers. Lightning replaces them, so they are installed again when training starts.

        If SIGINT is ignored, as under `nohup`, SIGINT stays ignored.
        """
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                signal.signal(number, self._hear)
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number in signal.pthread_sigmask(signal.SIG_BLOCK, ()):  # another thread received the signal
            signal.pthread_kill(threading.get_ident(), number)  # pending until this thread unblocks the signal
            return
        if number != signal.SIGINT:
            self.asked = True
        elif self.interrupted or not self.waits_for_step:
            raise KeyboardInterrupt
        else:
            self.interrupted = True
            os.write(2, SAVING)
        if not self.waits_for_step and not StopRequest._is_ending:
            StopRequest._is_ending = True
            raise Stopped(f"stopped by {signal.Signals(number).name}")

    def asked_of_any(self) -> int:
        """Return the exit code of a stop that any rank was asked for, or 0. Every rank must call it.

        If Ctrl-C and another signal came, the code is that of Ctrl-C.
        """
        return self.asked_of_any_and(False)[0]

    def asked_of_any_and(self, flag: bool) -> tuple[int, bool]:
        """Return `asked_of_any` and whether the flag of any rank is true, by one message for both."""
        from sftmix.distributed.process_group import all_reduce_sum

        asked, interrupted, flags = all_reduce_sum([float(self.asked), float(self.interrupted), float(flag)])
        StopRequest._is_ending = bool(asked or interrupted)
        return INTERRUPTED if interrupted else TRY_AGAIN if asked else 0, bool(flags)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Let a stop wait for the next step.

        Raises:
            Stopped: If a stop was asked for after the last call of `asked_of_any`.
        """
        self.waits_for_step = True
        try:
            yield
        finally:
            self.waits_for_step = False
        self.end_if_asked()

    def end_if_asked(self) -> None:
        """Raise Stopped if this process was asked to stop."""
        if self.asked or self.interrupted:
            StopRequest._is_ending = True
            raise Stopped("stopped after the last step", INTERRUPTED if self.interrupted else TRY_AGAIN)


@contextmanager
def stops_handed_on(
    processes: Callable[[], Sequence["subprocess.Popen[bytes]"]], stop_signal: str, message: bytes = SAVING
) -> Iterator[list[int]]:
    """Send requests to stop to child processes, and yield the list of the signals that came.

    Every signal is sent as SIGTERM, which makes a child save and end. Children are started under `blocked(SIGINT)`, so
    a Ctrl-C of a terminal reaches each child once, through this process.

    Args:
        processes: Returns the children that run.
        stop_signal: Name of the signal that asks for a stop, beside SIGTERM and SIGINT.
        message: What is printed at the first Ctrl-C.

    Raises:
        KeyboardInterrupt: If Ctrl-C came a second time.
    """
    came: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if signal.SIGINT in came:
                raise KeyboardInterrupt
            os.write(2, message)
        came.append(number)
        for process in processes():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.Signals[stop_signal])
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number, earlier in before.items():
            if number != signal.SIGINT or earlier is not signal.SIG_IGN:  # as in `StopRequest.listen`
                signal.signal(number, hand_on)
        yield came
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def stop_code(came: Sequence[int]) -> int:
    """Return the exit code of a stop that signals asked for, or 0 if none came."""
    return 0 if not came else INTERRUPTED if set(came) == {signal.SIGINT} else TRY_AGAIN


@contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Block signals. Processes that are started meanwhile never receive them: their parent handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Send this process a signal when its parent ends, in whatever way.

    Linux sends the signal. For other systems a thread watches the parent.

    Args:
        parent: Process id of the parent. If the parent has already ended, this process exits.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(ORPHAN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


def end_with_sweep() -> None:
    """If a sweep started this program, ask the program to save its state and stop when the sweep ends."""
    if PARENT in os.environ:
        die_with(int(os.environ.pop(PARENT)), signal.SIGTERM)
