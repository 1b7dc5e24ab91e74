"""What a study shows: a line per job that has ended, how far it is, and some words at its end."""

import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from iskd.errors import UserError
from iskd.progress import Note, job_name, read_notes
from iskd.screen import Screen
from iskd.time_left import TARGETS, Running, TimeLeft, in_words

SHOW = "ISKD_SHOW"
"""Environment variable: how much a study shows."""
Shown = Literal["jobs", "study", "nothing"]
"""A line per job, how far the study is, and its end; the same without jobs; failed jobs only.

With the last one Snakemake's own lines stay as they are.
"""

LAST_LINES = 10
"""Lines of a failed job's log that are shown."""
WIDTH = 80
"""Columns that are enough for every line that is not another program's."""
# Columns below which a job's name says nothing.
_LEAST = 12
# Seconds between two lines about a study where there is no terminal, and the same as a share of
# the time it has run.
_PACE = 10.0
_SHARE = 1 / 30
# Jobs below the study's line on a terminal.
_MOST = 4
# What Snakemake tells job by job.
_TOLD = (
    *("job_info", "job_error", "job_finished", "group_info", "group_error", "progress"),
    *("shellcmd", "run_info", "resources_info", "workflow_started", "job_started"),
)
_ROUTINE = (
    *("Assuming unrestricted shared", "Building DAG", "Using shell", "Conda environments: ign"),
    *("Singularity containers: ignored", "Select jobs to execute", "Complete log", "Elapsed time"),
)
# Of a script that has failed, whose log is shown.
_OF_SCRIPT = ("RuleException:\nCalledProcessError", "CalledProcessError")


def how_much(asked: str | None) -> Shown:
    """Read :data:`SHOW`.

    Raises:
        UserError: it is none of the words that it may be.
    """
    for known in get_args(Shown):
        if (asked or "jobs") == known:
            return known
    raise UserError(f"{SHOW}={asked}: unknown; give one of {', '.join(get_args(Shown))}")


def is_routine(record: logging.LogRecord) -> bool:
    """Tell whether an event of Snakemake's log is one that a study says in its own line."""
    event = getattr(record, "event", None)
    if event is not None and str(event) != "error":
        return str(event) in _TOLD
    text = str(record.msg or "")
    if record.levelno >= logging.ERROR:
        return text.startswith(_OF_SCRIPT)
    return record.levelno < logging.WARNING and text.startswith(_ROUTINE)


@dataclass
class _Running:
    rule: str
    name: str
    log: list[str]
    started: float


@dataclass
class Failed:
    """A job that failed.

    Attributes:
        name: rule and wildcards.
        log: the job's logs.
    """

    name: str
    log: list[Path] = field(default_factory=list)

    def as_text(self) -> str:
        """Give the last lines of its log, and where the whole of it is."""
        lines = [f"{self.name} failed"]
        for path in self.log:
            lines[0] += f"; the end of {path}:"
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                text = "(there is no log)"
            lines += [f"  {line}" for line in text.splitlines()[-LAST_LINES:]]
        return "\n".join(lines)


class StudyProgress(logging.Handler):
    """Follow the events of Snakemake's log, and show them in one line per job.

    On a terminal the study's line and those of the jobs that run stay at the bottom. Elsewhere it
    is printed now and then.

    Args:
        study: the study's name.
        say: where to.
        benchmarks: the folder of the study's benchmarks, which tell how long its jobs have taken.
        shown: how much is said; see :data:`Shown`.
    """

    def __init__(
        self,
        study: str,
        say: TextIO = sys.stderr,
        benchmarks: Path | None = None,
        shown: Shown = "jobs",
    ) -> None:
        super().__init__()
        self.study = study
        self.say = say
        self.shown = shown
        self.failed: list[Failed] = []
        self.done = self.total = 0
        self._time_left = TimeLeft(benchmarks)
        self._running: dict[int, _Running] = {}
        self._started = self._reported = time.monotonic()
        self._notes: tempfile.TemporaryDirectory[str] | None = None
        self._screen: Screen | None = None

    def take_notes(self) -> Path:
        """Make a folder for what jobs say of their progress, see :mod:`iskd.progress`."""
        self._notes = tempfile.TemporaryDirectory(prefix="iskd-", ignore_cleanup_errors=True)
        return Path(self._notes.name)

    def start_screen(self) -> None:
        """Keep the study's line at the bottom of the terminal until :meth:`end`."""
        self._screen = Screen(self.block)
        self._screen.start()

    def end(self) -> None:
        """Give the terminal back."""
        if self._screen is not None:
            self._screen.stop()
        if self._notes is not None:
            self._notes.cleanup()

    def emit(self, record: logging.LogRecord) -> None:
        """Take over one event."""
        event = getattr(record, "event", None)
        if event is not None:
            handler = getattr(self, f"_{event}", None)
            if handler is not None:
                handler(record.__dict__)

    def _run_info(self, event: Mapping[str, Any]) -> None:
        stats = dict(event["stats"])
        self.total = stats.pop("total", 0)
        self._time_left.left = Counter(stats)
        if self.shown != "nothing":
            self._say(f"study {self.study}: {_counted(self.total, 'job')} to run")

    def _job_info(self, event: Mapping[str, Any]) -> None:
        name = job_name(event["rule_name"], event.get("wildcards") or {})
        log = [str(path) for path in event.get("log") or []]
        here = time.monotonic()
        self._time_left.begun()
        self._running[event["jobid"]] = _Running(event["rule_name"], name, log, here)
        pace = max(_PACE, _SHARE * (here - self._started))
        due = self.done and here - self._reported >= pace
        if due and self.shown != "nothing" and self._screen is None:
            self._reported = here
            self._say(self.line())

    def _job_finished(self, event: Mapping[str, Any]) -> None:
        job = self._running.pop(event["job_id"], None)
        if job is None:
            return
        took = time.monotonic() - job.started
        self._time_left.ended(job.rule, took)
        self.done += 1
        # An earlier attempt of it may have failed.
        self.failed = [other for other in self.failed if other.name != job.name]
        if self.shown == "jobs" and job.rule not in TARGETS:
            count = f"{self.done}".rjust(len(str(self.total)))
            self._say(cut(f"{count}/{self.total} {in_words(took):>6}  {job.name}", WIDTH))

    def _job_error(self, event: Mapping[str, Any]) -> None:
        job = self._running.pop(event["jobid"], None)
        if job is not None:
            # Tried again, it fails under the same name.
            self.failed = [other for other in self.failed if other.name != job.name]
            self.failed.append(Failed(job.name, [Path(path) for path in job.log]))
            if self.shown != "nothing":
                self._say(self.failed[-1].as_text())

    def _progress(self, event: Mapping[str, Any]) -> None:
        self.done = event["done"]
        # With targets or --until Snakemake counts jobs that it will not run.
        self.total = self.total or event["total"]

    def _say(self, text: str) -> None:
        print(text, file=self.say, flush=True)

    def line(self, width: int = WIDTH) -> str:
        """Say how far the study is, in one line of so many columns."""
        status, now = self._status(), [job.name for job in list(self._running.values())]
        if not now:
            return cut(status, width)
        more = f" and {len(now) - 1} more" if len(now) > 1 else ""
        room = width - len(f"{status}; running: {more}")
        if room < _LEAST:
            return cut(f"{status}; {len(now)} running", width)
        return f"{status}; running: {cut(now[0], room)}{more}"

    def block(self, width: int) -> list[str]:
        """Give the lines at the bottom of a terminal: the study's, and one per job that runs."""
        # Copies, as this is called in the screen's thread; waiting for the handler's lock could
        # wait for ever, since whoever holds it may be waiting for the screen to print.
        running = sorted(self._running.values(), key=lambda job: job.started)
        notes = self._read_notes()
        lines = [self._status()]
        for job in running[: _MOST if len(running) <= _MOST else _MOST - 1]:
            note = notes.get(job.name)
            said = note.as_text() if note else in_words(time.monotonic() - job.started)
            lines.append(f"  {cut(job.name, width - len(said) - 5)}  {said}")
        if len(running) > _MOST:
            lines.append(f"  and {len(running) - _MOST + 1} more")
        # A line as wide as the terminal would make some of them go on in the next row.
        return [cut(line, width - 1) for line in lines]

    def _status(self) -> str:
        left = self.seconds_left()
        parts = [f"study {self.study}: {self.done} of {self.total} jobs done"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if left is not None:
            parts.append(f"about {in_words(left)} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """Estimate how long the rest will take, as :class:`iskd.time_left.TimeLeft` does."""
        here, notes = time.monotonic(), self._read_notes()
        running = [
            Running(
                job.rule, here - job.started, notes[job.name].left if job.name in notes else None
            )
            for job in list(self._running.values())
        ]
        return self._time_left.seconds(running)

    def _read_notes(self) -> dict[str, Note]:
        return read_notes(Path(self._notes.name)) if self._notes is not None else {}

    def failed_words(self, logs: Collection[str] = ()) -> str:
        """Name the jobs that failed, where their logs are, and where Snakemake's own is.

        Args:
            logs: Snakemake's logs.
        """
        lines = ["", f"{_counted(len(self.failed), 'job')} of {self.total} failed:"]
        if not self.failed:
            lines[1] = f"stopped: {self.done} of {self.total} jobs done; call it again to go on"
        for failed in self.failed:
            if self.shown == "nothing":  # it was not told before
                lines.append(failed.as_text())
            else:
                lines += [f"  {failed.name}", *(f"    {path}" for path in failed.log)]
        return "\n".join([*lines, *_of_snakemake(logs)])

    def closing_words(self, results: Path, logs: Collection[str] = ()) -> str:
        """Say what a finished study has made, and how long that took.

        Args:
            results: the study's folder of results.
            logs: Snakemake's logs.
        """
        words = closing_words(results)
        took = in_words(time.monotonic() - self._started)
        ran = f"{_counted(self.done, 'job')} in {took}"
        first = [words, ran] if words else [f"study {self.study}: {ran}"]
        return "\n".join([*first, *_of_snakemake(logs)])


def _of_snakemake(logs: Collection[str]) -> list[str]:
    found = []
    for log in logs:
        path = Path(log)
        with suppress(ValueError):
            path = path.relative_to(Path.cwd())
        found.append(f"All that Snakemake said: {path}")
    return found


def cut(text: str, width: int) -> str:
    """Leave out the middle of what is too long for a line."""
    if len(text) <= width:
        return text
    ending = (width - 1) // 2
    return f"{text[: width - 1 - ending]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - ending :]}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def closing_words(results: Path) -> str:
    """Say what a finished study has made, where it lies, and what to look at first.

    Args:
        results: the study's folder of results.

    Returns:
        some lines, or nothing where the study's paper is not there
    """
    paper = results / "paper"
    if not (paper / "manifest.json").is_file():
        return ""
    figures = sorted(paper.glob("figure_*.png"))
    first = [figure for figure in figures if figure.name.startswith("figure_tradeoff")] or figures
    tables = sorted(paper.glob("table_*.md"))
    cards = sorted(results.glob("*/*/*/seed_*/step_*/README.md"))
    lines = [
        "",
        f"Study {results.name}: {len(figures)} figures, {len(tables)} tables, {len(cards)} "
        f"models with their cards. Look first at",
        *(f"  {path}" for path in first[:1]),
        f"  {paper / 'table_main.md'}",
        *(f"  {path.parent}/  (README.md is its card)" for path in _featured(cards)),
        f"All figures, tables and numbers: {paper}/",
        "A page to send to a colleague, with the same --configfile as this call:",
        "  snakemake --report report.html",
    ]
    return "\n".join(lines)


def _featured(cards: list[Path]) -> list[Path]:
    """Choose the one model to name: a substituted one, if there is any."""
    substituted = [card for card in cards if "substitute_block" in card.parts]
    return (substituted or cards)[:1]
