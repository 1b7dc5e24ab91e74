"""How long the rest of a study will take, from what its jobs have taken so far."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

# Seconds of a job on two idle cores, by rule, in the smallest studies: only what rules have to one
# another counts, where a rule has not been seen and no earlier call tells. By kind: rules that
# last longer where the model, the text or the machine makes others of their kind last longer.
_TYPICAL = {
    "training": {
        **{"pretrain_teacher": 20.0, "substitute_block": 14.0, "substitute_at_once": 14.0},
        **{"prune_l1": 14.0, "drop_layers": 12.0, "distill_student": 16.0, "tune_teacher": 16.0},
    },
    "evaluation": {
        **{"evaluate": 11.0, "evaluate_heldout": 11.0, "generate": 11.0},
        **{"measure_efficiency": 12.0, "record_teacher": 12.0},
    },
    "report": {
        **{"collect_metrics": 2.0, "collect_measurements": 3.0, "collect_paper": 1.0},
        **{"paper_bundle": 0.5, "paper_numbers": 1.0, "paper_measured_numbers": 1.0},
        **{"summarize": 2.0, "model_card": 2.0},
    },
    "preparation": {
        **{"import_model": 8.0, "plan_substitutions": 8.0, "train_tokenizer": 8.0},
        **{"prepare_corpus": 8.0, "prepare_text": 8.0, "measure_overlap": 3.0},
        **{"prepare_task": 0.5, "split_corpus": 0.5, "make_toyworld": 1.0},
    },
}
_FIGURE, _TABLE, _OTHER = 5.0, 1.5, 5.0
# Jobs of a rule whose mean counts: the machine may have become faster or slower.
_LATEST = 8
# A job that has outlasted what was expected is taken to need this share of its time more.
_OVERRUN = 0.3
# Reports at a time, on average: they are short, and Snakemake needs its own time between jobs.
_REPORTS = 1.4
# Seconds that any job needs before it does anything.
_START = 2.0
# The most that jobs of one kind tell of those of another.
_STRANGE = 3.0
TARGETS = ("all", "prefetch")
"""Rules without a job of their own."""


@dataclass(frozen=True)
class Running:
    """A job that runs.

    Attributes:
        rule: its rule.
        spent: seconds since it began.
        left: seconds that its loop still needs as it says itself, or None.
    """

    rule: str
    spent: float
    left: float | None = None


class TimeLeft:
    """Estimate how long the jobs that are left will take.

    A job that runs is taken to last as long as it says itself. Others are taken to last as long as
    the latest of their rule did. Where none has ended yet, it is as long as in earlier calls, and
    where there were none, as long as such jobs typically last; both times the median factor by
    which the rules of their kind (trainings, evaluations, preparations, reports) have lasted
    longer or shorter than that today, or else all rules.

    Attributes:
        left: how many jobs of each rule have not ended.

    Args:
        benchmarks: the folder of the study's benchmarks, which tell how long its jobs have taken.
    """

    def __init__(self, benchmarks: Path | None = None) -> None:
        self.left: Counter[str] = Counter()
        self._earlier = {} if benchmarks is None else earlier_seconds(benchmarks)
        self._took: dict[str, list[float]] = defaultdict(list)
        self._worked = 0.0
        self._started: float | None = None

    def begun(self) -> None:
        """Note that a job begins: the clock runs from the first one on."""
        if self._started is None:
            self._started = time.monotonic()

    def ended(self, rule: str, seconds: float) -> None:
        """Take over how long a job has taken."""
        self._took[rule].append(seconds)
        self._worked += seconds
        self.left[rule] -= 1

    def seconds(self, running: Sequence[Running]) -> float | None:
        """Estimate how long the rest will take, in seconds.

        Args:
            running: the jobs that run now.

        Returns:
            the estimate, or None as long as nothing is known to go by
        """
        # Copies: another thread may ask while jobs end.
        today = {rule: mean(took[-_LATEST:]) for rule, took in list(self._took.items())}
        if self._started is None or not (today or self._earlier or running):
            return None
        left = Counter({rule: max(0, count) for rule, count in dict(self.left).items()})
        longest: dict[str, float] = {}
        for job in running:
            whole = job.spent + (_OVERRUN * job.spent if job.left is None else job.left)
            longest[job.rule] = max(whole, longest.get(job.rule, 0.0))
        for rule, whole in longest.items():
            # What runs for longer than its rule was thought to last says more than that thought.
            if rule not in today and (whole > self._expected(rule, today) or _says(rule, running)):
                today[rule] = whole
        rest = {True: 0.0, False: 0.0}  # reports, and the others
        for job in running:
            left[job.rule] -= 1
            expected = self._expected(job.rule, today)
            own = max(expected - job.spent, _OVERRUN * min(job.spent, expected))
            rest[kind_of(job.rule) == "report"] += own if job.left is None else job.left
        for rule, count in left.items():
            rest[kind_of(rule) == "report"] += max(0, count) * self._expected(rule, today)
        # How many jobs have run at a time so far.
        worked = self._worked + sum(job.spent for job in running)
        together = max(1.0, worked / max(time.monotonic() - self._started, 1e-3))
        return rest[False] / together + rest[True] / min(together, _REPORTS)

    def _expected(self, rule: str, today: Mapping[str, float]) -> float:
        """Say how many seconds a job of a rule will take."""
        if rule in TARGETS:
            return 0.0
        if rule in today:
            return today[rule]
        return self._before(rule) * self._factor(rule, today)

    def _before(self, rule: str) -> float:
        return self._earlier[rule] if rule in self._earlier else typical_seconds(rule)

    def _factor(self, rule: str, today: Mapping[str, float]) -> float:
        """Say by what factor jobs like a rule's last longer today than they did before."""
        known = rule in self._earlier
        # An earlier call of this study is compared with itself alone.
        seen = [name for name in today if (name in self._earlier) == known and name not in TARGETS]
        alike = [name for name in seen if kind_of(name) == kind_of(rule)]
        if not (alike or seen):
            return 1.0
        # Short jobs have a factor of their start alone.
        ratios = [(today[n] + _START) / (self._before(n) + _START) for n in alike or seen]
        factor = median(ratios)
        return factor if alike else min(max(factor, 1 / _STRANGE), _STRANGE)


def _says(rule: str, running: Sequence[Running]) -> bool:
    return any(job.rule == rule and job.left is not None for job in running)


def kind_of(rule: str) -> str:
    """Name the kind of a rule, whose jobs last longer where those of others of it do."""
    for kind, rules in _TYPICAL.items():
        if rule in rules:
            return kind
    return "report" if rule.startswith(("figure_", "table_")) else "preparation"


def typical_seconds(rule: str) -> float:
    """Say how long a job of a rule lasts in the smallest studies."""
    for rules in _TYPICAL.values():
        if rule in rules:
            return rules[rule]
    if rule.startswith("figure_"):
        return _FIGURE
    return _TABLE if rule.startswith("table_") else _OTHER


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
