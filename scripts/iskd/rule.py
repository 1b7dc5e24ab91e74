"""The one context manager that every thin script uses.

It sets what must be set before torch is imported (threads, offline switches), opens the log,
gives the script a folder to write into, and publishes that folder as an artifact when the script
ends well. A user's mistake ends in one line, any other failure in a traceback in the log.
"""

import logging
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.provenance.artifact import (
    MANIFEST,
    RUN,
    draft_text,
    file_digest,
    publish,
    staging_folder,
)
from iskd.provenance.storage import storage_fault, storage_faults_told
from iskd.training.state import EXIT_AGAIN, Interrupted, WorkFolder

LOCK = Path(__file__).resolve().parents[2] / "envs" / "requirements.lock"

_THREAD_SWITCHES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
# Parameters of a rule that say how it is tracked, not what it computes.
_TRACKING = ("code", "seed")
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "lm-eval", "seaborn")


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


def _open_log(path: Path | None) -> logging.Logger:
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers = [_LogFile(path, mode="w", encoding="utf-8")]
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )
    logging.captureWarnings(capture=True)
    for noisy in ("httpx", "matplotlib", "fontTools", "filelock", "datasets", "lm_eval", "lm-eval"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return logging.getLogger("iskd")


def _set_environment(threads: int, *, network: bool) -> None:
    for switch in _THREAD_SWITCHES:
        os.environ[switch] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    # cuBLAS reads this once, when CUDA comes up; without it its sums have no fixed order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for switch in _OFFLINE_SWITCHES:
        os.environ[switch] = "0" if network else "1"


def _input_digests(inputs: dict[str, Any]) -> dict[str, str]:
    """Give the sha256 of each manifest, and of each raw file that belongs to no artifact.

    Weights and other big files of an artifact are named with digest in its manifest already.
    """
    digests: dict[str, str] = {}
    for value in inputs.values():
        for item in [value] if isinstance(value, str | Path) else value:
            path = Path(item)
            if path.name == MANIFEST or not (path.parent / MANIFEST).exists():
                # An absolute path says where this machine keeps its data, not what was read.
                shown = path.name if path.is_absolute() else path.as_posix()
                alike = sum(name.split(" #")[0] == shown for name in digests)
                digests[f"{shown} #{alike + 1}" if alike else shown] = file_digest(path)
    return digests


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed program, fixed arguments
            ["git", "-C", str(LOCK.parent), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _how(started: float, threads: int) -> dict[str, Any]:
    """Describe how the job went, as far as it does not define the result."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    changes = _git("status", "--porcelain", "--untracked-files=no")
    modified = None if changes is None else bool(changes)
    return {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
        "host": {"machine": platform.machine(), "system": platform.system()},
        "git": {"commit": _git("rev-parse", "HEAD"), "modified": modified},
        "versions": _versions(),
        "threads": threads,
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


@contextmanager
def run_rule(snakemake: Any, *, network: bool = False) -> Iterator[Job]:
    """Run a script's body as one job and publish what it wrote into ``job.out``.

    The artifact's folder is the one of the output named ``manifest``. Import torch and the
    Hugging Face libraries inside of the ``with`` block only: they read their switches on import.

    Raises:
        SystemExit: the body failed; nothing was published.
    """
    started = time.time()
    threads = int(snakemake.threads)
    _set_environment(threads, network=network)
    log_path = Path(snakemake.log[0]) if len(snakemake.log) else None
    log = _open_log_or_leave(snakemake.rule, log_path)
    folder = Path(snakemake.output.manifest).parent
    params = dict(snakemake.params.items())
    try:
        with storage_faults_told():
            asked = {
                "rule": snakemake.rule,
                "wildcards": dict(snakemake.wildcards.items()),
                "parameters": {k: v for k, v in params.items() if k not in _TRACKING},
                "seed": params.get("seed"),
                "inputs": _input_digests(dict(snakemake.input.items())),
                "code": params["code"],
                "lock": file_digest(LOCK),
            }
        work = WorkFolder.beside(folder, asked)
        with storage_faults_told(), work.locked():
            draft = staging_folder(folder)
            job = Job(
                rule=snakemake.rule,
                params=params,
                seed=int(params.get("seed", 0)),
                threads=threads,
                inputs=dict(snakemake.input.items()),
                wildcards=dict(snakemake.wildcards.items()),
                out=draft,
                log=log,
                work=work,
            )
            try:
                # Told before the folders go, which are asked what is wrong with them.
                with storage_faults_told((draft, work.path)):
                    yield job
                    work.check_held()
                    _check_outputs(snakemake.output, draft)
                    run = _how(started, threads) | {
                        "resumed_after_steps": work.resumed,
                        "resumed_after_texts": work.resumed_texts,
                    }
                    with _copies(draft, folder, [Path(o) for o in snakemake.output]):
                        publish(draft, folder, asked=asked, summary=job.summary, run=run)
                    work.remove()
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        log.info("published %s after %.1f s", folder.as_posix(), time.time() - started)
        _tell_lost_lines(log_path)
    except UserError as error:
        log.error("%s: %s", snakemake.rule, error)
        sys.exit(f"{snakemake.rule}: {error}")
    except Interrupted as stop:
        log.warning("%s: %s; call snakemake again to go on", snakemake.rule, stop)
        sys.exit(EXIT_AGAIN)
    except Exception as error:
        log.exception("%s failed", snakemake.rule)
        where = f"; the traceback is in {log_path}" if log_path else ""
        sys.exit(f"{snakemake.rule} failed: {type(error).__name__}: {error}{where}")


def _open_log_or_leave(rule: str, path: Path | None) -> logging.Logger:
    try:
        return _open_log(path)
    except OSError as error:
        fault = storage_fault(error, ()) or f"{path}: {error.strerror}"
        sys.exit(f"{rule}: its log cannot be opened: {fault}")


def _tell_lost_lines(log_path: Path | None) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LogFile) and handler.lost:
            print(f"{log_path} lacks lines: {handler.lost}", file=sys.stderr)


def _check_outputs(outputs: Any, draft: Path) -> None:
    draft.stat()  # its being gone is told apart from a file that was not written
    missing = [
        Path(o).name
        for o in outputs
        if Path(o).name not in (MANIFEST, RUN) and not (draft / Path(o).name).exists()
    ]
    if missing:
        raise RuntimeError(f"the script did not write {', '.join(missing)}")
