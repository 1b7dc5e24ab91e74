"""What all benchmarks share: things timed in turn, and ratios of what was timed in one round."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

Seconds = dict[str, list[float]]


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Call each of several ways once per round, every second round in the other order.

    Returns:
        per way, its seconds in each round
    """
    seconds: Seconds = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            started = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Seconds, name: str, to: str) -> str:
    """Give how many times as long one way takes as another: median over the rounds, and range."""
    return spread(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Write the median of some values, and their range."""
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return f"{middle:.{digits}f} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f})"


def machine() -> str:
    """Describe the machine and the libraries that are timed."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {libraries}"
