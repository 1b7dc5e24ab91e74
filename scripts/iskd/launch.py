"""Run one job's script in several processes, through torchrun.

The job that Snakemake has started keeps the lock, the staging folder and the last word: it writes
down what the processes need to know, starts them, waits, and publishes what the first of them has
written. Each of them runs the same script (see ``iskd.worker``), with an :class:`Assignment` in
place of Snakemake's object. They live and die with the job: what it is told to stop for, they are
told, and when it is killed, they end.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.provenance.artifact import canonical_json, write_text
from iskd.provenance.fingerprint import SCRIPTS
from iskd.training.state import STOP_SIGNALS, Interrupted, StopRequest

ASSIGNMENT = "assignment.json"
ALIVE = "alive"
"""A pipe that the job holds open. Who waits for something to read from it wakes when it dies."""

# How often a job looks after its processes, in seconds.
_LOOK = 0.2


@dataclass
class Assignment:
    """What every process of a job is told; its script finds it in place of ``snakemake``."""

    script: str
    rule: str
    params: dict[str, Any]
    wildcards: dict[str, str]
    inputs: dict[str, Any]
    threads: int
    log: str | None
    asked: dict[str, Any]
    out: str
    work: str
    started: float
    processes: int
    parallel: str
    # What the script gives back; only the first process's counts.
    summary: dict[str, Any] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Write the assignment where the processes read it."""
        path = folder / ASSIGNMENT
        write_text(path, canonical_json(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> "Assignment":
        """Read what :meth:`write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass
class Report:
    """How one process ended.

    ``end`` is ``done``, ``again`` (it was asked to stop and saved its state), ``user`` (a user's
    mistake), ``failed``, ``machine`` (it failed, and may not on another attempt), or ``told`` (it
    was told to end outside of a training, maybe because another process had died).
    """

    rank: int
    end: str
    message: str = ""
    ended: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    how: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the report where the job reads it."""
        write_text(folder / f"report-{self.rank}.json", canonical_json(asdict(self)))

    @classmethod
    def read_all(cls, folder: Path) -> "list[Report]":
        """Read what there is, in the order of ranks."""
        files = folder.glob("report-*.json")
        reports = [cls(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
        return sorted(reports, key=lambda report: report.rank)


def processes_of(snakemake: Any) -> tuple[int, str, int]:
    """Read how many processes a job takes, how they share the work, and the threads of each.

    The first two are resources, which Snakemake does not compare when it decides on reruns, and not
    parameters: a finished model is not made again because the next ones take more GPUs. The number
    is one of its own, beside ``gpu``, which a site may set to 0 in favour of ``gres``.
    """
    resources = getattr(snakemake, "resources", {})
    processes = int(resources.get("processes", 1))
    # They share the cores that Snakemake has set aside.
    threads = max(1, int(snakemake.threads) // processes)
    return processes, str(resources.get("parallel", "ddp")), threads


def run_processes(assignment: Assignment) -> Report:
    """Run a job's script in its processes and wait for their end.

    Returns:
        what the first process reports: ``summary``, ``resumed`` and ``how`` of the job

    Raises:
        Interrupted: the job was asked to stop.
        UserError: the script ended with one.
        ChildProcessError: a process was killed, or failed by no fault of the script.
        RuntimeError: the script failed.
    """
    with tempfile.TemporaryDirectory(prefix="iskd-") as place:
        folder = Path(place)
        assignment.write(folder)
        with _alive(folder), StopRequest().listening() as stop:
            code = _torchrun(assignment, folder, stop)
        return _verdict(Report.read_all(folder), assignment.processes, code, stop)


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
    """Start torchrun, hand on what the job is told, and give torchrun's exit code."""
    from iskd import worker

    path = os.pathsep.join(filter(None, [str(SCRIPTS), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "localhost", "--nproc-per-node", str(assignment.processes)]
    # A process that dies is not started again by itself: only the job knows from which state.
    command += ["--max-restarts", "0", "-m", worker.__name__, str(folder / ASSIGNMENT)]
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
        told: set[Path] = set()
        try:
            while True:
                try:
                    return torchrun.wait(_LOOK)
                except subprocess.TimeoutExpired:
                    if stop.asked:
                        _tell(signal.Signals[stop.asked], folder, told)
        finally:
            if torchrun.poll() is None:
                torchrun.kill()
                torchrun.wait()
            if torchrun.returncode < 0:
                _kill_left(folder)


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


def _tell(number: signal.Signals, folder: Path, told: set[Path]) -> None:
    """Hand a signal on to the processes that have not got it yet."""
    for file, pid in _pids(folder).items():
        if file not in told:
            told.add(file)
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _kill_left(folder: Path) -> None:
    """Kill what a torchrun that was killed has left; each process leads a group of its own."""
    for pid in _pids(folder).values():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _verdict(reports: list[Report], processes: int, code: int, stop: StopRequest) -> Report:
    """Make one end of the ends of all processes."""
    ends = {report.end: report for report in reversed(reports)}
    if "user" in ends:
        raise UserError(ends["user"].message)
    if "again" in ends:
        raise Interrupted(ends["again"].message)
    if code == 0 and len(reports) == processes:
        first = reports[0]
        for key in ("peak_memory_mb", "peak_gpu_memory_mb"):
            peaks = [report.how[key] for report in reports if report.how.get(key) is not None]
            first.how[key] = max(peaks, default=None)
        first.how["gpus"] = sum(report.how["gpus"] for report in reports)
        joules = [report.how["energy_joules"] for report in reports]
        first.how["energy_joules"] = None if None in joules else sum(joules)
        return first
    if stop.asked:
        raise Interrupted(f"{stop.asked} before there was a state to keep, or after the last one")
    # The first to fail says why; the others fail because they no longer hear from it.
    own = [report for report in reports if report.end not in ("done", "told")]
    failed = sorted(own, key=lambda report: report.ended)[:1]
    said = [f"process {report.rank} of {processes}: {report.message}" for report in failed]
    silent = sorted({*range(processes)} - {report.rank for report in reports})
    if silent:
        ranks = " and ".join(str(rank) for rank in silent)
        said.append(f"process {ranks} left no report, as one that is killed (for memory, say)")
    message = "; ".join(said) or f"torchrun ended with exit code {code}"
    if failed and failed[0].end == "failed":
        raise RuntimeError(message)
    raise ChildProcessError(message)
