"""A polite end: a signal asks a stage to save at the next step and to end so that the same command goes on."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from sftmix.training.ranks import sums


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self, signals: Sequence[str] = ()) -> None:
        """Nobody has asked yet."""
        self.signals = [signal.Signals[name] for name in signals]
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the signals, where this is the main thread; handlers that were there come back."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in self.signals}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Listen again: Lightning puts handlers of its own in the place of these."""
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def asked_of_any(self) -> bool:
        """Whether any rank was asked; every rank must call it, and all get the same answer."""
        return sums([float(self.asked)])[0] > 0
