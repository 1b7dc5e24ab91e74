"""How far things are: a bar for a job on a terminal, and lines for the study as a whole."""

import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

LAST_LINES = 10
"""Lines of a failed job's log that are shown."""
# Seconds between two lines about a study.
_PACE = 10.0


def bar(total: int, what: str, *, done: int = 0, unit: str = "step") -> "tqdm[NoReturn]":
    """Open a bar with an estimate on a terminal; elsewhere one that shows nothing.

    Args:
        total: what will have been done at the end.
        what: what is shown in front of it.
        done: what was done before.
        unit: name of one of them.
    """
    # Several jobs at a time share the terminal's last line; none leaves its bar behind.
    return tqdm(
        total=total,
        desc=what,
        initial=done,
        unit=unit,
        file=sys.stderr,
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )


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
    """Follow the events of Snakemake's log, and say how far the study is.

    It says at most every ten seconds how many jobs are done, about how long the others will take,
    and which run now. Jobs that have not begun are taken to last as long as others of their rule
    did, or, where none has ended yet, as long as a job did on average.

    Args:
        study: the study's name.
        say: where to.
    """

    def __init__(self, study: str, say: TextIO = sys.stderr) -> None:
        super().__init__()
        self.study = study
        self.say = say
        self.failed: list[Failed] = []
        self.done = self.total = 0
        self._left: Counter[str] = Counter()
        self._running: dict[int, _Running] = {}
        self._took: dict[str, list[float]] = defaultdict(list)
        self._started = self._said = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Take over one event."""
        event = getattr(record, "event", None)
        if event is not None:
            told = getattr(self, f"_{event}", None)
            if told is not None:
                told(record.__dict__)

    def _run_info(self, told: Mapping[str, Any]) -> None:
        stats = dict(told["stats"])
        self.total = stats.pop("total", 0)
        self._left = Counter(stats)

    def _job_info(self, told: Mapping[str, Any]) -> None:
        wildcards = told.get("wildcards") or {}
        name = " ".join([told["rule_name"], "/".join(map(str, wildcards.values()))]).strip()
        log = [str(path) for path in told.get("log") or []]
        running = _Running(told["rule_name"], name, log, time.monotonic())
        self._running[told["jobid"]] = running
        if self._took and time.monotonic() - self._said >= _PACE:
            self._said = time.monotonic()
            print(self.line(), file=self.say, flush=True)

    def _job_finished(self, told: Mapping[str, Any]) -> None:
        job = self._running.pop(told["job_id"], None)
        if job is not None:
            self._took[job.rule].append(time.monotonic() - job.started)
            self._left[job.rule] -= 1
            # An earlier attempt of it may have failed.
            self.failed = [other for other in self.failed if other.name != job.name]

    def _job_error(self, told: Mapping[str, Any]) -> None:
        job = self._running.pop(told["jobid"], None)
        if job is not None:
            # Tried again, it fails under the same name.
            self.failed = [other for other in self.failed if other.name != job.name]
            self.failed.append(Failed(job.name, [Path(path) for path in job.log]))

    def _progress(self, told: Mapping[str, Any]) -> None:
        self.done, self.total = told["done"], told["total"]

    def line(self) -> str:
        """Say how far the study is, in one line."""
        left = self.seconds_left()
        parts = [f"study {self.study}: {self.done} of {self.total} jobs done"]
        if left is not None:
            parts.append(f"about {in_words(left)} left")
        now = [job.name for job in self._running.values()]
        said = f"; running: {', '.join(now[:3])}" if now else ""
        return ", ".join(parts) + said + (f" and {len(now) - 3} more" if len(now) > 3 else "")

    def seconds_left(self) -> float | None:
        """Estimate how long the rest will take; None as long as no job has ended."""
        took = [seconds for rule in self._took.values() for seconds in rule]
        if not took:
            return None
        here, usual = time.monotonic(), mean(took)
        each = {
            rule: mean(self._took[rule]) if rule in self._took else usual for rule in self._left
        }
        left = sum(each[rule] * max(0, count) for rule, count in self._left.items())
        spent = [min(here - job.started, each.get(job.rule, 0)) for job in self._running.values()]
        # How many jobs have run at a time so far.
        together = (sum(took) + sum(spent)) / max(here - self._started, 1e-3)
        return max(0.0, left - sum(spent)) / max(together, 1.0)


def in_words(seconds: float) -> str:
    """Write a duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


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
        *(f"  {path.parent}/  (a model, its card is README.md)" for path in _featured(cards)),
        f"All figures, tables and numbers: {paper}/",
        "A page to send to a colleague: snakemake --report report.html, with the same --configfile",
    ]
    return "\n".join(lines)


def _featured(cards: list[Path]) -> list[Path]:
    """Choose the one model to name: a substituted one, if there is any."""
    substituted = [card for card in cards if "substitute_block" in card.parts]
    return (substituted or cards)[:1]
