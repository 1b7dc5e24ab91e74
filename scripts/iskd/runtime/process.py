"""The operating system's process that a job runs in: its switches, its log, its record."""

import ctypes
import gc
import logging
import os
import resource
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iskd.provenance.energy import EnergyMeter
from iskd.provenance.environment import environment

_THREAD_SWITCHES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
# Of glibc's mallopt (malloc.h): no blocks of their own for large requests, nothing handed back.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEPT_BYTES = 2**31 - 1
COMPILED = Path(".snakemake", "inductor")
"""Where compiled code lies: beside Snakemake's own notes, in the folder that all jobs share."""
_NOISY = (
    *("httpx", "matplotlib", "fontTools", "filelock", "datasets", "lm_eval", "lm-eval"),
    "accelerate",
)


def set_environment(threads: int, *, network: bool) -> None:
    """Set what importing the libraries depends on: threads, whether to stay offline, its pace."""
    for switch in _THREAD_SWITCHES:
        os.environ[switch] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # cuBLAS reads this once, when CUDA comes up; without it its sums have no fixed order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # What torch's compiler has built once, the next job of the study takes, on whichever machine.
    # It hands paths to the C++ compiler as they are: a folder with a blank keeps torch's own place.
    compiled = str(COMPILED.absolute())
    if shlex.quote(compiled) == compiled:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled)
    # It would start a process for each of the machine's processors.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    # torch's profiler, which counts memory, would print a line whenever it starts or stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    for switch in _OFFLINE_SWITCHES:
        os.environ[switch] = "0" if network else "1"
    keep_freed_memory()
    # At Python's own pace of searching for garbage, importing torch takes a third more. Tensors go
    # when their last name goes, without a search.
    gc.set_threshold(100_000, 20, 100)


def keep_freed_memory() -> None:
    """Have the C library keep what large tensors leave, where it is glibc.

    It would hand every large block back to the system and ask for it anew, page by page, which
    costs a training of 135 million parameters on a processor a good part of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


class _LogFile(logging.FileHandler):
    """A log whose disk may fill up: logging itself would print a traceback for every line."""

    lost: str | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Note why a line could not be written."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.lost = error.strerror
        else:
            super().handleError(record)


def open_log(path: Path | None, process: tuple[int, int] | None = None) -> logging.Logger:
    """Send what is logged to a file, or to stderr.

    Args:
        path: the file; what is in it goes, unless one of several processes opens it.
        process: which of how many processes this is; all but the first only warn.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if process is None:
            path.write_bytes(b"")
        # Appending, because a job and its processes write into the same file.
        handlers = [_LogFile(path, mode="a", encoding="utf-8")]
    rank, processes = process or (0, 1)
    logging.basicConfig(
        level=logging.WARNING if rank else logging.INFO,
        format=f"%(asctime)s process {rank} of {processes}: %(message)s"
        if rank
        else "%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )
    logging.captureWarnings(capture=True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return logging.getLogger("iskd")


def close_log(log_path: Path | None) -> None:
    """Say what the log lacks, and have the process end without delay.

    Args:
        log_path: the log's file, for the message.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogFile) and handler.lost:
            print(f"{log_path} lacks lines: {handler.lost}", file=sys.stderr)
    # What is in memory now need not be searched for garbage: with torch that takes a second.
    gc.freeze()


def run_record(started: float, threads: int, meter: EnergyMeter) -> dict[str, Any]:
    """Describe how the job ran, as far as that does not define the result.

    ``energy_joules`` is what the job's GPU has taken since the meter was started, or else the
    machine's processors; ``energy_covers`` says in words what is in it besides the job.

    Args:
        started: when the job started, in seconds since the epoch.
        threads: how many it may use.
        meter: started with the job.

    Returns:
        the fields of ``run.json`` that are known here
    """
    energy = meter.read()  # before CUDA comes up for the sake of a name below
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
        **environment(),
        "threads": threads,
        "gpus": energy.gpus,
        "energy_joules": energy.joules,
        "energy_covers": energy.covers,
        "device": torch.cuda.get_device_name() if torch is not None and cuda else "cpu",
        "deterministic": bool(torch is not None and torch.are_deterministic_algorithms_enabled()),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_gpu_memory_mb": (
            torch.cuda.max_memory_allocated() // 2**20 if torch is not None and cuda else None
        ),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
