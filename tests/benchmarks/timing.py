"""What all benchmarks share: how they begin, and how they write what they have timed."""

import argparse
import logging
import os
import platform
import statistics
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from iskd.runtime.process import set_environment


def begin(purpose: str | None) -> int:
    """Read a benchmark's options, be on a core as a job is, and print what is timed on.

    Args:
        purpose: the benchmark's docstring.

    Returns:
        rounds asked for
    """
    import torch

    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    logging.disable(logging.WARNING)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    # Everything that is timed, ours or not, has a job's process around it: at Python's own pace a
    # search for garbage takes a fifth of a second, now of one and now of the other.
    set_environment(threads, network=False)
    print(f"{machine()}\n")
    return rounds


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
