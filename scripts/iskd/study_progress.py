"""How far a study is: one line now and then, and some words when it ends."""

import json
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any, TextIO

LAST_LINES = 10
"""Lines of a failed job's log that are shown."""
# Seconds between two lines about a study.
_PACE = 10.0
# Rules whose jobs last alike; the others prepare something.
_KINDS = {
    **dict.fromkeys(
        (
            *("pretrain_teacher", "substitute_block", "substitute_at_once", "prune_l1"),
            *("drop_layers", "distill_student", "tune_teacher"),
        ),
        "training",
    ),
    **dict.fromkeys(
        ("evaluate", "evaluate_heldout", "generate", "measure_efficiency", "record_teacher"),
        "evaluation",
    ),
}
_REPORTS = ("figure_", "table_", "paper_", "collect_", "summarize", "model_card")
# Rules without a job of their own.
_TARGETS = ("all", "prefetch")


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
    did; where none has ended yet, as long as in earlier calls; where there were none, as the
    rules of their kind (trainings, evaluations, preparations), or in the end as all rules: the
    median of what each takes on average, so that one long training does not count for all.
    Reports are taken to be as short as the shortest.

    Args:
        study: the study's name.
        say: where to.
        benchmarks: the folder of the study's benchmarks, which tell how long its jobs have taken.
    """

    def __init__(
        self, study: str, say: TextIO = sys.stderr, benchmarks: Path | None = None
    ) -> None:
        super().__init__()
        self._earlier = {} if benchmarks is None else earlier_seconds(benchmarks)
        self.study = study
        self.say = say
        self.failed: list[Failed] = []
        self.done = self.total = 0
        self._left: Counter[str] = Counter()
        self._running: dict[int, _Running] = {}
        self._took: dict[str, list[float]] = defaultdict(list)
        self._started = self._reported = time.monotonic()

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
        self._left = Counter(stats)

    def _job_info(self, event: Mapping[str, Any]) -> None:
        wildcards = event.get("wildcards") or {}
        name = " ".join([event["rule_name"], "/".join(map(str, wildcards.values()))]).strip()
        log = [str(path) for path in event.get("log") or []]
        running = _Running(event["rule_name"], name, log, time.monotonic())
        self._running[event["jobid"]] = running
        if self._took and time.monotonic() - self._reported >= _PACE:
            self._reported = time.monotonic()
            print(self.line(), file=self.say, flush=True)

    def _job_finished(self, event: Mapping[str, Any]) -> None:
        job = self._running.pop(event["job_id"], None)
        if job is not None:
            self._took[job.rule].append(time.monotonic() - job.started)
            self._left[job.rule] -= 1
            # An earlier attempt of it may have failed.
            self.failed = [other for other in self.failed if other.name != job.name]

    def _job_error(self, event: Mapping[str, Any]) -> None:
        job = self._running.pop(event["jobid"], None)
        if job is not None:
            # Tried again, it fails under the same name.
            self.failed = [other for other in self.failed if other.name != job.name]
            self.failed.append(Failed(job.name, [Path(path) for path in job.log]))

    def _progress(self, event: Mapping[str, Any]) -> None:
        self.done, self.total = event["done"], event["total"]

    def line(self) -> str:
        """Say how far the study is, in one line."""
        left = self.seconds_left()
        parts = [f"study {self.study}: {self.done} of {self.total} jobs done"]
        if left is not None:
            parts.append(f"about {in_words(left)} left")
        now = [job.name for job in self._running.values()]
        running = f"; running: {', '.join(now[:3])}" if now else ""
        return ", ".join(parts) + running + (f" and {len(now) - 3} more" if len(now) > 3 else "")

    def seconds_left(self) -> float | None:
        """Estimate how long the rest will take; None as long as no job has ended."""
        took = [seconds for rule in self._took.values() for seconds in rule]
        if not took:
            return None
        here = time.monotonic()
        each = {rule: self._expected(rule) for rule in {*self._left, *self._of_running()}}
        left = sum(each[rule] * max(0, count) for rule, count in self._left.items())
        spent = [min(here - job.started, each[job.rule]) for job in self._running.values()]
        # How many jobs have run at a time so far.
        together = (sum(took) + sum(spent)) / max(here - self._started, 1e-3)
        return max(0.0, left - sum(spent)) / max(together, 1.0)

    def _of_running(self) -> set[str]:
        return {job.rule for job in self._running.values()}

    def _expected(self, rule: str) -> float:
        """Say how many seconds a job of a rule will take."""
        if rule in _TARGETS:
            return 0.0
        if rule in self._took:
            return mean(self._took[rule])
        if rule in self._earlier:
            return self._earlier[rule]
        known = self._earlier | {name: mean(took) for name, took in self._took.items()}
        alike = [known[name] for name in known if _kind(name) == _kind(rule)]
        if not alike and _kind(rule) == "report":
            return min(known.values())
        return median(alike or known.values())


def _kind(rule: str) -> str:
    """Name the kind of a rule, whose jobs last about as long as those of others of it."""
    return "report" if rule.startswith(_REPORTS) else _KINDS.get(rule, "preparation")


def earlier_seconds(benchmarks: Path) -> dict[str, float]:
    """Give how long jobs have taken on average, by their rule, as their benchmarks tell.

    Args:
        benchmarks: the folder of a study's benchmarks; may be missing.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for file in sorted(benchmarks.rglob("*.jsonl")):
        rule = file.relative_to(benchmarks).parts[0].removesuffix(".jsonl")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
            found[rule] += [float(json.loads(line)["s"]) for line in lines]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half written when its job was killed
    return {rule: mean(seconds) for rule, seconds in found.items() if seconds}


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
