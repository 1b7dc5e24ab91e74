"""Run one job's script in several processes, through torchrun.

The job that Snakemake has started keeps the lock, the staging folder and the last word: it writes
down what the processes need to know, starts them, waits, and publishes what the first of them has
written. Each of them runs the same script (see ``iskd.runtime.worker``), with an
:class:`~iskd.runtime.messages.Assignment` in place of Snakemake's object. They live and die with
the job: a signal that asks it to stop is forwarded to them, and when it is killed, they end.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.provenance.fingerprint import SCRIPTS
from iskd.runtime.messages import ALIVE, ASSIGNMENT, Assignment, Report
from iskd.runtime.signals import STOP_SIGNALS, Interrupted, StopRequest
from iskd.runtime.task import SnakemakeObject

# By name, because the worker runs scripts and these import this module. The digest of the code
# counts modules that are named like this.
_WORKER = "iskd.runtime.worker"
# How often a job looks after its processes, in seconds.
_LOOK = 0.2


def processes_of(task: SnakemakeObject) -> tuple[int, str, int]:
    """Read how many processes a job takes, how they share the work, and the threads of each.

    The first two are resources, which Snakemake does not compare when it decides on reruns, and not
    parameters: a finished model is not made again because the next ones take more GPUs. The number
    is one of its own, beside ``gpu``, which a site may set to 0 in favour of ``gres``.

    Args:
        task: Snakemake's object.
    """
    resources = task.resources
    processes = int(resources.get("processes", 1))
    # They share the cores that Snakemake has set aside.
    threads = max(1, int(task.threads) // processes)
    return processes, str(resources.get("parallel", "ddp")), threads


def run_processes(assignment: Assignment) -> Report:
    """Run a job's script in its processes and wait for their end.

    Args:
        assignment: the job's description.

    Returns:
        what the first process reports: ``summary``, ``resumed`` and ``run`` of the job

    Raises:
        Interrupted: the job was asked to stop.
        UserError: the script ended with one.
        ChildProcessError: a process was killed, or failed by no fault of the script.
        RuntimeError: the script failed.
    """
    with tempfile.TemporaryDirectory(prefix="iskd-") as place:
        folder = Path(place)
        assignment.write(folder)
        with _alive(folder), StopRequest().handling_signals() as stop:
            code = _torchrun(assignment, folder, stop)
        return _overall_report(Report.read_all(folder), assignment.processes, code, stop)


@contextmanager
def _alive(folder: Path) -> Iterator[None]:
    os.mkfifo(folder / ALIVE)
    # Open for both directions: for writing alone it would wait for a reader.
    descriptor = os.open(folder / ALIVE, os.O_RDWR)
    try:
        yield
    finally:
        os.close(descriptor)


def _torchrun(assignment: Assignment, folder: Path, stop: StopRequest) -> int:
    """Start torchrun, forward signals to its processes, and give torchrun's exit code."""
    path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "localhost", "--nproc-per-node", str(assignment.processes)]
    # A process that dies is not started again by itself: only the job knows from which state.
    command += ["--max-restarts", "0", "-m", _WORKER, str(folder / ASSIGNMENT)]
    with _log_stream(assignment.log) as stream:
        # Signals that ask to stop are kept from torchrun, which would kill the processes after
        # half a minute. The mask is inherited; the processes lift it, and get what was pending.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            torchrun = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command,
                stdout=stream,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": path},
                # Ctrl-C ends the job, and the job ends torchrun.
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        notified: set[Path] = set()
        try:
            while True:
                try:
                    return torchrun.wait(_LOOK)
                except subprocess.TimeoutExpired:
                    if stop.signal_name:
                        _forward(signal.Signals[stop.signal_name], folder, notified)
        finally:
            if torchrun.poll() is None:
                torchrun.kill()
                torchrun.wait()
            if torchrun.returncode < 0:
                _kill_survivors(folder)


@contextmanager
def _log_stream(path: str | None) -> Iterator[Any]:
    if path is None:
        yield None
        return
    with Path(path).open("ab") as stream:
        yield stream


def _pids(folder: Path) -> dict[Path, int]:
    """List the processes that have started, by the files in which they say so."""
    return {file: int(file.read_text()) for file in folder.glob("*.pid")}


def _forward(number: signal.Signals, folder: Path, notified: set[Path]) -> None:
    """Send a signal to the processes that have not got it yet."""
    for file, pid in _pids(folder).items():
        if file not in notified:
            notified.add(file)
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _kill_survivors(folder: Path) -> None:
    """Kill what a torchrun that was killed has left; each process leads a group of its own."""
    for pid in _pids(folder).values():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _overall_report(reports: list[Report], processes: int, code: int, stop: StopRequest) -> Report:
    """Make one report of the reports of all processes."""
    ends = {report.end: report for report in reversed(reports)}
    if "user" in ends:
        raise UserError(ends["user"].message)
    if "again" in ends:
        raise Interrupted(ends["again"].message)
    if code == 0 and len(reports) == processes:
        first = reports[0]
        for key in ("peak_memory_mb", "peak_gpu_memory_mb"):
            peaks = [report.run[key] for report in reports if report.run.get(key) is not None]
            first.run[key] = max(peaks, default=None)
        first.run["gpus"] = sum(report.run["gpus"] for report in reports)
        joules = [report.run["energy_joules"] for report in reports]
        first.run["energy_joules"] = None if None in joules else sum(joules)
        return first
    if stop.signal_name:
        raise Interrupted(
            f"{stop.signal_name} before there was a state to keep, or after the last one"
        )
    # The first to fail says why; the others fail because it no longer answers.
    own = [report for report in reports if report.end not in ("done", "terminated")]
    failed = sorted(own, key=lambda report: report.ended)[:1]
    reasons = [f"process {report.rank} of {processes}: {report.message}" for report in failed]
    silent = sorted({*range(processes)} - {report.rank for report in reports})
    if silent:
        ranks = " and ".join(str(rank) for rank in silent)
        reasons.append(f"process {ranks} left no report, as one that is killed (for memory, say)")
    message = "; ".join(reasons) or f"torchrun ended with exit code {code}"
    if failed and failed[0].end == "failed":
        raise RuntimeError(message)
    raise ChildProcessError(message)
