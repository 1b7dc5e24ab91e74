"""The one context manager that every thin script uses.

It sets what must be set before torch is imported (threads, offline switches), opens the log,
gives the script a folder to write into, and publishes that folder as an artifact when the script
ends well. A user's mistake ends in one line, any other failure in a traceback in the log.
"""

import ctypes
import gc
import json
import logging
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iskd.attempts import attempt
from iskd.errors import UserError
from iskd.launch import Assignment, processes_of, run_processes
from iskd.provenance.artifact import (
    MANIFEST,
    RUN,
    canonical_json,
    draft_text,
    file_digest,
    input_names,
    publish,
    read_manifest,
    staging_folder,
    text_digest,
)
from iskd.provenance.energy import EnergyMeter
from iskd.provenance.environment import LOCK, environment
from iskd.provenance.fingerprint import SCRIPTS
from iskd.provenance.ledger import Spent
from iskd.provenance.statement import StatementError
from iskd.provenance.storage import storage_fault, storage_faults_told
from iskd.training.state import EXIT_AGAIN, Interrupted, WorkFolder

_THREAD_SWITCHES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
# Of glibc's mallopt (malloc.h): no blocks of their own for large requests, nothing handed back.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEPT_BYTES = 2**31 - 1
# The folder of collect_paper, the one whose name is not its rule's.
PAPER = "paper"
# Parameters of a rule that say how it is tracked, not what it computes.
_TRACKING = ("code", "script", "seed")
_NOISY = (
    *("httpx", "matplotlib", "fontTools", "filelock", "datasets", "lm_eval", "lm-eval"),
    "accelerate",
)


@dataclass
class Job:
    """One run of one rule, as its script sees it.

    ``out`` is the folder to write into; ``work`` keeps what must survive being killed;
    ``inputs`` maps names to paths (or lists of paths); ``summary`` takes the numbers that shall
    stand in the manifest.
    """

    rule: str
    params: dict[str, Any]
    seed: int
    threads: int
    inputs: dict[str, Any]
    wildcards: dict[str, str]
    out: Path
    log: logging.Logger
    work: WorkFolder
    summary: dict[str, Any] = field(default_factory=dict)
    top: Path = Path()
    """The folder that holds ``results``: the prefix, where the workflow is used as a module."""

    @property
    def request(self) -> str:
        """The digest of what this job was asked for, inputs' digests and code included."""
        return text_digest(canonical_json(self.work.asked))

    def folder(self, name: str) -> Path:
        """Give the folder of the artifact whose manifest is the input ``name``."""
        return Path(self.inputs[name]).parent


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


def _open_log_or_leave(rule: str, path: Path | None) -> logging.Logger:
    try:
        return open_log(path)
    except OSError as error:
        fault = storage_fault(error, ()) or f"{path}: {error.strerror}"
        sys.exit(f"{rule}: its log cannot be opened: {fault}")


def set_environment(threads: int, *, network: bool) -> None:
    """Set what importing the libraries depends on: threads, whether to stay offline, its pace."""
    for switch in _THREAD_SWITCHES:
        os.environ[switch] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # cuBLAS reads this once, when CUDA comes up; without it its sums have no fixed order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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


def _rule_name(snakemake: Any) -> str:
    """Give the rule's own name, whatever a workflow that uses this one as a module calls it.

    Raises:
        SystemExit: the script does not run with the library beside it, whose digest is recorded.
    """
    # Snakemake runs a copy of the script and tells it where the original lies.
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    if (script.parent / "iskd").is_dir() and not script.parent.samefile(SCRIPTS):
        sys.exit(
            f"{snakemake.rule}: the library is imported from {SCRIPTS} and not from beside the "
            f"script, {script.parent}; let PYTHONPATH begin with the latter"
        )
    return script.stem if (SCRIPTS / script.name).is_file() else str(snakemake.rule)


def _top(folder: Path, rule: str) -> Path:
    """Find the folder that holds ``results``, above an artifact's."""
    for place, part in enumerate(folder.parts[:-2]):
        # A prefix may have any name.
        if part == "results" and folder.parts[place + 2] in (rule, PAPER):
            return Path(*folder.parts[:place])
    return Path()


def _input_digests(inputs: dict[str, Any], top: Path) -> dict[str, dict[str, str]]:
    """Give the sha256 of each manifest, and of each raw file that belongs to no artifact.

    Weights and other big files of an artifact are named with digest in its manifest already, and
    the digest of all its files stands beside the manifest's own.
    """
    paths = [
        Path(item)
        for value in inputs.values()
        for item in ([value] if isinstance(value, str | Path) else value)
    ]
    names = input_names(paths, lambda path: (path.parent / MANIFEST).exists(), top)
    return {name: _input_digest(path) for name, path in names.items()}


def _input_digest(path: Path) -> dict[str, str]:
    digest = {"sha256": file_digest(path)}
    if path.name == MANIFEST:
        try:
            digest["artifact"] = read_manifest(path).artifact
        except StatementError as error:
            raise UserError(
                f"{path} {error}; delete {path.parent} and call snakemake again"
            ) from error
    return digest


def how_it_went(started: float, threads: int, meter: EnergyMeter) -> dict[str, Any]:
    """Describe how the job went, as far as it does not define the result.

    ``energy_joules`` is what the job's GPU has taken since the meter was started, or else the
    machine's processors; ``energy_covers`` says in words what is in it besides the job.
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


@contextmanager
def _copies(draft: Path, folder: Path, outputs: list[Path]) -> Iterator[None]:
    """Copy files of the artifact to where the rule names an output outside of its folder.

    The copies are written before the artifact is published and get their names after it, so that
    a full disk stops both.
    """
    copies: dict[Path, Path] = {}
    try:
        for path in outputs:
            if path.parent != folder:
                path.parent.mkdir(parents=True, exist_ok=True)
                text = (draft / path.name).read_text(encoding="utf-8")
                copies[path] = draft_text(path, text)
        yield
        try:
            for path, copy in copies.items():
                copy.replace(path)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        for copy in copies.values():
            with suppress(OSError):
                copy.unlink(missing_ok=True)


def _run_in_processes(
    job: Job, log_path: Path | None, started: float, processes: int, parallel: str
) -> dict[str, Any]:
    """Have the script run in several processes, and give how it went."""
    report = run_processes(
        Assignment(
            script=os.path.abspath(sys.modules["__main__"].__file__ or ""),  # noqa: PTH100
            rule=job.rule,
            params=job.params,
            wildcards=job.wildcards,
            inputs={n: list(v) if not isinstance(v, str) else v for n, v in job.inputs.items()},
            threads=job.threads,
            log=None if log_path is None else str(log_path),
            asked=job.work.asked,
            out=str(job.out),
            work=str(job.work.path),
            started=started,
            processes=processes,
            parallel=parallel,
        )
    )
    job.summary |= report.summary
    job.work.resumed += report.resumed
    return report.how


def _count_processors(how: dict[str, Any], meter: EnergyMeter) -> None:
    """Put in the processors' energy where there are no GPUs: each process has counted them all."""
    if not how["gpus"]:
        processors = meter.read()
        how["energy_joules"], how["energy_covers"] = processors.joules, processors.covers


def _process_job(assignment: Assignment) -> Iterator[Job]:
    """Give the job to the script in one of several processes."""
    work = WorkFolder(Path(assignment.work), assignment.asked)
    # Each process would know of its own GPU's energy alone.
    work.open_ledger(lambda: Spent(time.time() - assignment.started, None))
    job = Job(
        rule=assignment.rule,
        params=assignment.params,
        seed=int(assignment.params.get("seed", 0)),
        threads=assignment.threads,
        inputs=assignment.inputs,
        wildcards=assignment.wildcards,
        out=Path(assignment.out),
        log=logging.getLogger("iskd"),
        work=work,
    )
    yield job
    assignment.summary, assignment.resumed = job.summary, work.resumed


@contextmanager
def run_rule(snakemake: Any, *, network: bool = False) -> Iterator[Job]:
    """Run a script's body as one job and publish what it wrote into ``job.out``.

    Where the rule asks for several processes, the body runs in each of them (see ``iskd.launch``)
    and not here. The artifact's folder is the one of the output named ``manifest``. Import torch
    and the Hugging Face libraries inside of the ``with`` block only: they read their switches on
    import.

    Raises:
        SystemExit: the body failed, and nothing was published; with exit code 0, it ran elsewhere.
    """
    if isinstance(snakemake, Assignment):
        yield from _process_job(snakemake)
        return
    started, meter = time.time(), EnergyMeter()
    processes, parallel, threads = processes_of(snakemake)
    set_environment(threads, network=network)
    attempt_number = getattr(snakemake, "resources", {}).get("attempt")
    log_path = Path(snakemake.log[0]) if len(snakemake.log) else None
    rule, folder = _rule_name(snakemake), Path(snakemake.output.manifest).parent
    log = _open_log_or_leave(rule, log_path)
    params = dict(snakemake.params.items())
    try:
        with storage_faults_told():
            asked = _asked(snakemake, params, rule)
        work = WorkFolder.beside(folder, asked)
        work.spent = lambda: Spent(
            time.time() - started, meter.read().joules if processes == 1 else None
        )
        _tell_slurm_job(log, attempt_number)
        with storage_faults_told(), work.locked(), attempt(work, attempt_number):
            _leave_if_published(folder, work, [Path(o) for o in snakemake.output], log)
            draft = staging_folder(folder)
            job = Job(
                rule=rule,
                params=params,
                seed=int(params.get("seed", 0)),
                threads=threads,
                inputs=dict(snakemake.input.items()),
                wildcards=dict(snakemake.wildcards.items()),
                out=draft,
                log=log,
                work=work,
                top=_top(folder, rule),
            )
            try:
                # Told before the folders go, which are asked what is wrong with them.
                with storage_faults_told((draft, work.path)):
                    if processes == 1:
                        yield job
                        how = how_it_went(started, threads, meter)
                    else:
                        how = _run_in_processes(job, log_path, started, processes, parallel)
                        _count_processors(how, meter)
                    how |= {"processes": processes, "parallel": parallel if processes > 1 else None}
                    _seal(job, folder, snakemake.output, how)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
                meter.stop()
        log.info("published %s after %.1f s", folder.as_posix(), time.time() - started)
        _close(log_path)
        if processes > 1:
            sys.exit(0)  # the script's body has run, in the processes
    except UserError as error:
        log.error("%s: %s", rule, error)
        sys.exit(f"{rule}: {error}")
    except Interrupted as stop:
        log.warning("%s: %s; call snakemake again to go on", rule, stop)
        sys.exit(EXIT_AGAIN)
    except Exception as error:
        log.exception("%s failed", rule)
        where = f"; the traceback is in {log_path}" if log_path else ""
        sys.exit(f"{rule} failed: {type(error).__name__}: {error}{where}")


def _tell_slurm_job(log: logging.Logger, number: int | None) -> None:
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        which = "" if number is None else f", attempt {number}"
        log.info("process %d of SLURM job %s on %s%s", os.getpid(), job, platform.node(), which)


def _asked(snakemake: Any, params: dict[str, Any], rule: str) -> dict[str, Any]:
    """Give what defines the artifact."""
    top = _top(Path(snakemake.output.manifest).parent, rule)
    return {
        "rule": rule,
        "wildcards": dict(snakemake.wildcards.items()),
        "parameters": {k: v for k, v in params.items() if k not in _TRACKING},
        "seed": params.get("seed"),
        "inputs": _input_digests(dict(snakemake.input.items()), top),
        "code": params["code"],
        "lock": file_digest(LOCK),
    }


def _leave_if_published(
    folder: Path, work: WorkFolder, outputs: list[Path], log: logging.Logger
) -> None:
    """End the job where just its artifact is there, whole.

    Snakemake deletes a job's outputs before it starts it, so a job that an earlier Snakemake had
    started, and lost when it was killed, has gone on to its end in the meantime.
    """
    if _is_published(folder, work.asked):
        with _copies(folder, folder, outputs):
            work.remove()
        log.info("%s was published by a job that ran on", folder.as_posix())
        sys.exit(0)


def _is_published(folder: Path, asked: dict[str, Any]) -> bool:
    """Tell whether an artifact lies at its place, and every file of it is what was published."""
    try:
        statement = read_manifest(folder)
        if statement.asked != json.loads(canonical_json(asked)):
            return False
        return all(
            file_digest(folder / name) == file.sha256 for name, file in statement.files.items()
        )
    except (OSError, ValueError):
        return False


def _close(log_path: Path | None) -> None:
    """Say what the log lacks, and have the process end without delay."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogFile) and handler.lost:
            print(f"{log_path} lacks lines: {handler.lost}", file=sys.stderr)
    # What is in memory now need not be searched for garbage: with torch that takes a second.
    gc.freeze()


def _seal(job: Job, folder: Path, outputs: Any, how: dict[str, Any]) -> None:
    """Publish what the script wrote, and let go of what would have served to resume it."""
    work = job.work
    work.check_held()
    _check_outputs(outputs, job.out)
    in_all = work.in_all(Spent(how["seconds"], how["energy_joules"]))
    run = how | {
        "seconds_in_all": round(in_all.seconds, 3),
        "energy_joules_in_all": in_all.joules,
        "resumed_after_steps": work.resumed,
        "resumed_after_texts": work.resumed_texts,
    }
    with _copies(job.out, folder, [Path(o) for o in outputs]):
        publish(job.out, folder, asked=work.asked, summary=job.summary, run=run)
    work.remove()


def _check_outputs(outputs: Any, draft: Path) -> None:
    draft.stat()  # its being gone is told apart from a file that was not written
    missing = [
        Path(o).name
        for o in outputs
        if Path(o).name not in (MANIFEST, RUN) and not (draft / Path(o).name).exists()
    ]
    if missing:
        raise RuntimeError(f"the script did not write {', '.join(missing)}")
