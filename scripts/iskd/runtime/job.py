"""The context manager around the body of every script, which makes one job of it.

It sets what must be set before torch is imported (threads, offline switches), opens the log,
gives the script a folder to write into, and publishes that folder as an artifact when the script
ends well. A user's mistake ends in one line, any other failure in a traceback in the log.
"""

import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from iskd.errors import UserError
from iskd.progress import job_name, name_job
from iskd.provenance.artifact import staging_folder, text_digest
from iskd.provenance.energy import EnergyMeter
from iskd.provenance.ledger import Spent
from iskd.provenance.statement import canonical_json
from iskd.provenance.storage import storage_fault, translate_storage_errors
from iskd.runtime.launch import processes_of, run_processes
from iskd.runtime.messages import Assignment
from iskd.runtime.process import close_log, open_log, run_record, set_environment
from iskd.runtime.publishing import exit_if_published, publish_draft
from iskd.runtime.request import request_of, rule_name, top_folder
from iskd.runtime.retries import attempt
from iskd.runtime.signals import EXIT_AGAIN, Interrupted
from iskd.runtime.task import SnakemakeObject
from iskd.runtime.tracking import announce, tracking_of
from iskd.runtime.workdir import WorkFolder


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
    def request_digest(self) -> str:
        """The digest of what defines the artifact, inputs' digests and code included."""
        return text_digest(canonical_json(self.work.request))

    def folder(self, name: str) -> Path:
        """Give the folder of the artifact whose manifest is the input ``name``."""
        return Path(self.inputs[name]).parent

    def folders(self, name: str) -> list[Path]:
        """Give the folders of the artifacts whose manifests are the input ``name``, if any are."""
        given = self.inputs.get(name, [])
        manifests = [given] if isinstance(given, str) else given
        return [Path(manifest).parent for manifest in manifests]


@contextmanager
def run_rule(
    task: SnakemakeObject | Assignment | None = None, *, network: bool = False
) -> Iterator[Job]:
    """Run a script's body as one job and publish what it wrote into ``job.out``.

    Where the rule asks for several processes, the body runs in each of them (see
    ``iskd.runtime.launch``) and not here. The artifact's folder is the one of the output named
    ``manifest``. Import torch and the Hugging Face libraries inside of the ``with`` block only:
    they read their switches on import.

    Args:
        task: Snakemake's object, or in one of several processes their job's description; left
            out, what the script that runs finds under the name ``snakemake``.
        network: whether the job may open connections.

    Raises:
        SystemExit: the body failed, and nothing was published; with exit code 0, it ran elsewhere.
    """
    task = task or _task_of_script()
    if isinstance(task, Assignment):
        yield from _process_job(task)
        return
    started, meter = time.time(), EnergyMeter()
    processes, parallel, threads = processes_of(task)
    set_environment(threads, network=network)
    attempt_number = task.resources.get("attempt")
    log_path = Path(task.log[0]) if len(task.log) else None
    rule, folder = rule_name(task), Path(task.output.manifest).parent
    name_job(job_name(rule, dict(task.wildcards.items())))
    log = _open_log_or_exit(rule, log_path)
    params, outputs = dict(task.params.items()), [Path(path) for path in task.output]
    try:
        with translate_storage_errors():
            request = request_of(task, params, rule)
        announce(tracking_of(task, rule, request))
        work = WorkFolder.beside(folder, request)
        work.spent = lambda: Spent(
            time.time() - started, meter.read().joules if processes == 1 else None
        )
        _log_slurm_job(log, attempt_number)
        with translate_storage_errors(), work.locked(), attempt(work, attempt_number):
            exit_if_published(folder, work, outputs, log)
            draft = staging_folder(folder)
            job = Job(
                rule=rule,
                params=params,
                seed=int(params.get("seed", 0)),
                threads=threads,
                inputs=dict(task.input.items()),
                wildcards=dict(task.wildcards.items()),
                out=draft,
                log=log,
                work=work,
                top=top_folder(folder, rule),
            )
            try:
                # Translated before the folders go, which are looked at to find what is wrong.
                with translate_storage_errors((draft, work.path)):
                    if processes == 1:
                        yield job
                        run = run_record(started, threads, meter)
                    else:
                        run = _run_in_processes(job, log_path, started, processes, parallel)
                        _count_processors(run, meter)
                    run |= {"processes": processes, "parallel": parallel if processes > 1 else None}
                    publish_draft(draft, folder, outputs, work=work, summary=job.summary, run=run)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
                meter.stop()
        log.info("published %s after %.1f s", folder.as_posix(), time.time() - started)
        close_log(log_path)
        if processes > 1:
            sys.exit(0)  # the script's body has run, in the processes
    except Exception as error:
        _exit(error, rule, log, log_path)


def _exit(error: Exception, rule: str, log: logging.Logger, log_path: Path | None) -> NoReturn:
    """End a job that failed, or was asked to stop, in one line."""
    if isinstance(error, UserError):
        log.error("%s: %s", rule, error)
        sys.exit(f"{rule}: {error}")
    if isinstance(error, Interrupted):
        log.warning("%s: %s; call snakemake again to go on", rule, error)
        sys.exit(EXIT_AGAIN)
    log.error("%s failed", rule, exc_info=error)
    where = f"; the traceback is in {log_path}" if log_path else ""
    sys.exit(f"{rule} failed: {type(error).__name__}: {error}{where}")


def _task_of_script() -> SnakemakeObject | Assignment:
    """Give what Snakemake, or who runs a script in its place, has put into the script's names."""
    task: SnakemakeObject | Assignment = sys.modules["__main__"].snakemake
    return task


def _process_job(assignment: Assignment) -> Iterator[Job]:
    """Give the job to the script in one of several processes."""
    name_job(job_name(assignment.rule, assignment.wildcards))
    work = WorkFolder(Path(assignment.work), assignment.request)
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


def _run_in_processes(
    job: Job, log_path: Path | None, started: float, processes: int, parallel: str
) -> dict[str, Any]:
    """Have the script run in several processes, and give the record of the run."""
    report = run_processes(
        Assignment(
            script=os.path.abspath(sys.modules["__main__"].__file__ or ""),  # noqa: PTH100
            rule=job.rule,
            params=job.params,
            wildcards=job.wildcards,
            inputs={n: list(v) if not isinstance(v, str) else v for n, v in job.inputs.items()},
            threads=job.threads,
            log=None if log_path is None else str(log_path),
            request=job.work.request,
            out=str(job.out),
            work=str(job.work.path),
            started=started,
            processes=processes,
            parallel=parallel,
        )
    )
    job.summary |= report.summary
    job.work.resumed += report.resumed
    return report.run


def _count_processors(run: dict[str, Any], meter: EnergyMeter) -> None:
    """Put in the processors' energy where there are no GPUs: each process has counted them all."""
    if not run["gpus"]:
        processors = meter.read()
        run["energy_joules"], run["energy_covers"] = processors.joules, processors.covers


def _open_log_or_exit(rule: str, path: Path | None) -> logging.Logger:
    try:
        return open_log(path)
    except OSError as error:
        fault = storage_fault(error, ()) or f"{path}: {error.strerror}"
        sys.exit(f"{rule}: its log cannot be opened: {fault}")


def _log_slurm_job(log: logging.Logger, number: int | None) -> None:
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        which = "" if number is None else f", attempt {number}"
        log.info("process %d of SLURM job %s on %s%s", os.getpid(), job, platform.node(), which)
