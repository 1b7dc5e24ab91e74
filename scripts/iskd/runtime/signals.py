"""Requests to stop, which reach a process as signals."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Leaves a shell script, and Snakemake's retries, the choice: try again later (sysexits.h).
EXIT_AGAIN = 75

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a job to stop: the first also when it is preempted, the second before a time limit."""


class Interrupted(Exception):  # noqa: N818 - no error: it goes on later
    """A run was asked to stop, saved its state and is to be called again."""


class StopRequest:
    """Whether this process was asked to stop: by SIGTERM, or by SIGUSR1 before a time limit.

    ``signal_name`` is the name of the signal that came last, None as long as none has come.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal_name = signal.Signals(number).name

    @contextmanager
    def handling_signals(self) -> Iterator["StopRequest"]:
        """Take note of the signals, in place of dying of them, as long as this is open."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set handlers
            return
        before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
