"""Signals that ask a run to stop."""

import signal
import threading
import time

import pytest

from sftmix.distributed.stopping import StopRequest
from sftmix.errors import Stopped


def test_a_stop_that_another_thread_receives_waits_until_the_main_thread_unblocks_the_signal():
    """Python calls handlers in the main thread even if that thread has blocked the signal."""
    stop, done = StopRequest(["SIGTERM"]), threading.Event()
    other = threading.Thread(target=done.wait)
    with pytest.raises(Stopped), stop.listening():
        other.start()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            signal.pthread_kill(other.ident, signal.SIGTERM)
            for _ in range(100):
                time.sleep(0.001)
            was_asked = stop.asked
        finally:
            done.set()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert not was_asked
    assert stop.asked
