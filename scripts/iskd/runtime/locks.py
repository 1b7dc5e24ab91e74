"""Locks that die with the process that holds them, on any file system that several nodes share.

POSIX's record locks (fcntl) are let go by the kernel, whatever the process dies of, and work over
NFS. The file also says who holds it, for messages and for :func:`ask_to_stop`.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil


def take_lock(file: Path) -> int | None:
    """Try to take a lock.

    Args:
        file: the lock's file; made where it is not there.

    Returns:
        The open file's descriptor, which holds the lock until it is closed or the process ends;
        None while another process holds it.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have deleted the file between our two calls.
        if os.fstat(descriptor).st_ino == file.stat().st_ino:
            with suppress(OSError):  # a full disk: the lock is held all the same
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
            return descriptor
    except (BlockingIOError, PermissionError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def read_holder(file: Path) -> dict[str, Any] | None:
    """Read who holds, or last held, a lock: host, pid, start (s since the epoch), SLURM job id.

    Not for the holder itself: closing any descriptor of the file gives its lock up.
    """
    try:
        holder = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {*_this_process()} <= {*holder} else None


def ask_to_stop(holder: dict[str, Any]) -> str | None:  # noqa: PLR0911 - one way out per reason
    """Ask the holder of a lock to save what it has and end, as far as it can be reached from here.

    A SLURM job is cancelled (SIGTERM first, SIGKILL after the site's KillWait), a process of this
    host gets SIGTERM.

    Args:
        holder: what :func:`read_holder` gave.

    Returns:
        The holder in words; None where it cannot be reached, or is this very job's former start,
        which SLURM ends itself.
    """
    job = holder["slurm_job"]
    if job is not None:
        if job == os.environ.get("SLURM_JOB_ID") or not str(job).isdecimal():
            return None
        scancel = shutil.which("scancel")
        if scancel is None:
            return None
        done = subprocess.run(  # noqa: S603 - a number is all that reaches it
            [scancel, str(job)], capture_output=True, timeout=60, check=False
        )
        return f"SLURM job {job}" if done.returncode == 0 else None
    if holder["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(holder["pid"]))
        # A pid is given to another process one day, and in a container means another one.
        if process.create_time() != holder["started"] or process.pid == os.getpid():
            return None
        process.send_signal(signal.SIGTERM)
    except (psutil.Error, ValueError):
        return None
    return f"process {holder['pid']}"
