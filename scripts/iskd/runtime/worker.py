"""One of the processes of a job: ``torchrun ... -m iskd.runtime.worker assignment.json``.

It runs the job's script as Snakemake would, with the assignment in place of Snakemake's object, and
leaves a report of how that ended. ``iskd.runtime.launch`` starts it and reads the report.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

from iskd.errors import UserError
from iskd.provenance.artifact import write_text
from iskd.provenance.energy import EnergyMeter
from iskd.provenance.storage import translate_storage_errors
from iskd.runtime.messages import ALIVE, Assignment, Report
from iskd.runtime.process import open_log, run_record, set_environment
from iskd.runtime.retries import is_of_the_machine
from iskd.runtime.signals import STOP_SIGNALS, Interrupted


def main(path: Path) -> int:
    """Run the script of an assignment and report; give the exit code.

    A stop that was asked for is no failure, so that torchrun lets the other processes end too.

    Args:
        path: the file of the assignment.
    """
    folder, rank, meter = path.parent, int(os.environ["RANK"]), EnergyMeter()
    _exit_with_job(folder)
    write_text(folder / f"{rank}.pid", str(os.getpid()))
    _report_signals(folder, rank)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    assignment = Assignment.read(path)
    set_environment(assignment.threads, network=False)
    log = open_log(
        Path(assignment.log) if assignment.log else None, process=(rank, assignment.processes)
    )
    if rank:
        # Only the first process's files count; the others' go with the job's own folder.
        assignment.out = str(folder / f"out-{rank}")
        Path(assignment.out).mkdir()
    report = Report(rank, "done")
    try:
        with translate_storage_errors((Path(assignment.out), Path(assignment.work))):
            _run(assignment)
        report.summary, report.resumed = assignment.summary, assignment.resumed
        report.run = run_record(assignment.started, assignment.threads, meter)
    except UserError as error:
        report.end, report.message = "user", str(error)
    except Interrupted as stop:
        report.end, report.message = "again", str(stop)
    except Exception as error:
        log.exception("%s failed", assignment.rule)
        # gloo, too, fails where another process has died.
        blameless = is_of_the_machine(error) or "/gloo/" in str(error)
        report.end = "machine" if blameless else "failed"
        report.message = " ".join(f"{type(error).__name__}: {error}".split())
    report.ended = time.time()
    for number in STOP_SIGNALS:  # it ends anyway, and has more to say
        signal.signal(number, signal.SIG_IGN)
    report.write(folder)
    return 0 if report.end in ("done", "again") else 1


def _report_signals(folder: Path, rank: int) -> None:
    """Report when a signal ends this process outside of a training, which handles signals itself.

    When one process has died, torchrun ends the others by a signal, maybe before they could report
    that the first no longer answers. The process that leaves no report is the one that died.
    """

    def end(number: int, frame: object) -> None:
        del frame
        Report(rank, "terminated", signal.Signals(number).name, ended=time.time()).write(folder)
        os._exit(1)

    for number in STOP_SIGNALS:
        signal.signal(number, end)


def _exit_with_job(folder: Path) -> None:
    """End this process when the job's process has died, of whatever."""
    pipe = os.open(folder / ALIVE, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(pipe, True)

    def wait() -> None:
        os.read(pipe, 1)  # nobody writes: it returns when the other end is closed
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _run(assignment: Assignment) -> None:
    from torch import distributed

    from iskd.runtime.distributed import join

    join(assignment.parallel)
    runpy.run_path(assignment.script, init_globals={"snakemake": assignment}, run_name="__main__")
    distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
