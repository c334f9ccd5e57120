"""Stopping a training by hand, with Ctrl-C (SIGINT) or SIGTERM, after the running step."""

import os
import signal
import threading
from contextlib import suppress


class Stopped(KeyboardInterrupt):
    """A training was stopped by the signal `signum` and has written its checkpoint. The message is for the user."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


class StopSignals:
    """Within the block the first SIGINT or SIGTERM only sets `received`, to its number; the second one ends the program
    as usual. Does nothing if not `enabled`, outside the main thread, and for signals that are ignored."""

    def __init__(self, enabled: bool = True):
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.received: int | None = None
        self.previous = {}

    def __enter__(self) -> "StopSignals":
        for signum in (signal.SIGINT, signal.SIGTERM) if self.enabled else ():
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                self.previous[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_) -> None:
        while self.previous:
            signal.signal(*self.previous.popitem())

    def _receive(self, signum: int, _) -> None:
        self.received = signum
        self.__exit__()
        with suppress(OSError):  # not `print`, which the signal may have interrupted
            os.write(2, b"\nstopping after this step; the same signal again stops at once\n")
