"""Time for the parts of a benchmark: a share for each, and a stopwatch that lets a GPU run on."""

import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# Updates before the first that is timed: memory grows, graphs are compiled. Two more say how long
# one takes, and so how many fit into the time.
WARM, TRIED = 3, 2


class Enough(Exception):  # noqa: N818 - no error
    """End a training that has been timed."""


@dataclass
class Stopwatch:
    """Time the updates of a training, without a word to the device in between.

    Args:
        seconds: how long it may measure.
        updates: how many it measures at most.
    """

    seconds: float
    updates: int = 100
    begun: float = field(default_factory=time.perf_counter)
    warm: float = 0.0
    start: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0

    def __call__(self, update: int, total: int) -> None:
        """Note that an update begins.

        Raises:
            Enough: it need not.
        """
        first = WARM + TRIED
        if update == WARM:
            self.warm = now()
        elif update == first:
            self.start = now()
            one = (self.start - self.warm) / TRIED
            most = min(self.updates, total - first - 1)
            self.steps = max(1, min(most, int(self.seconds / one)))
        elif self.steps and update == first + self.steps:
            self.step_seconds = (now() - self.start) / self.steps
            raise Enough

    @property
    def setup(self) -> float:
        """Seconds until it was warm."""
        return self.warm - self.begun


def now() -> float:
    """Give the time at which the device has done all that it was given, in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class OutOfTime(BaseException):
    """End a part; what handles errors in between, as a compiler does, lets it through."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """End what runs inside after some seconds.

    Raises:
        OutOfTime: they have passed.
    """

    def end(*_: Any) -> None:
        raise OutOfTime(f"not done in its share of the time, {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Budget:
    """The time that is left for the parts that are left.

    Args:
        seconds: for all of them.
        parts: how many there are.
        least: what a part takes at least.
    """

    seconds: float
    parts: int
    least: float
    begun: float = field(default_factory=time.perf_counter)

    def spend(self, part: Callable[[], list[str]]) -> list[str] | str:
        """Run a part in its share: twice what would be even, as some are faster.

        Returns:
            its cells, or why there are none
        """
        left = self.begun + self.seconds - time.perf_counter()
        share = min(left, 2 * left / self.parts)
        self.parts -= 1
        if left < self.least:
            return f"left out: {max(0, left):.0f} s are left, and it takes {self.least:.0f} s"
        try:
            with at_most(share):
                return part()
        except (Exception, OutOfTime) as error:
            # A compiler's first line says only that it was one.
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:2]) or type(error).__name__
            if isinstance(error, torch.OutOfMemoryError):
                reason = "the card's memory is full"
            return reason[:200]
        finally:
            gc.collect()
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
