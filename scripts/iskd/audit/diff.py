"""What differs between two runs of a study: config, code, environment, data, models, numbers.

What stands further up may explain what stands below, so the first section that is not empty is
where to look.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from iskd.audit.checks import differences
from iskd.audit.folder import StudyFolder, recorded_config
from iskd.audit.rule_kinds import DATA, TRAININGS
from iskd.errors import UserError

SECTIONS = ("config", "code", "environment", "data", "models", "numbers")
# Of a report of a run, what may change numbers.
_HOW = ("versions", "host", "cuda", "variables", "threads", "device", "deterministic", "processes")
_SHOWN = 20


@dataclass
class Difference:
    """What two runs differ in.

    Attributes:
        found: sentences by section, in the order of `SECTIONS`.
    """

    found: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in SECTIONS})

    @property
    def exit_code(self) -> int:
        """0 where there is no difference, 1 where there is."""
        return 1 if any(self.found.values()) else 0

    def as_text(self) -> str:
        """Give the differences for people; long sections are cut, and say so."""
        lines: list[str] = []
        for name, messages in self.found.items():
            lines.append(f"{name}: {len(messages) or 'no'} difference{'s' * (len(messages) != 1)}")
            lines += [f"  {line}" for line in messages[:_SHOWN]]
            if len(messages) > _SHOWN:
                lines.append(f"  ... and {len(messages) - _SHOWN} more")
        return "\n".join(lines) + "\n"


def compare_studies(one: Path, other: Path) -> Difference:
    """Compare two studies' folders of results.

    Raises:
        UserError: one of them is no study, or does not tell its config.
    """
    folders = StudyFolder(one), StudyFolder(other)
    difference = Difference()
    ours, theirs = (yaml.safe_load(recorded_config(path)) for path in (one, other))
    for where, old, new in differences(ours, theirs, ""):
        difference.found["config"].append(f"{where.lstrip('.')}: {old!r}, {new!r}")
    difference.found["code"] = list(_code(*folders))
    difference.found["environment"] = list(_environment(*folders))
    difference.found["data"] = list(_artifacts(*folders, DATA))
    difference.found["models"] = list(_artifacts(*folders, TRAININGS))
    difference.found["numbers"] = list(_numbers(one / "metrics.csv", other / "metrics.csv"))
    return difference


def _by_rule(folder: StudyFolder) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for artifact in folder.artifacts.values():
        if artifact.statement is not None:
            request = artifact.statement.request
            found.setdefault(request["rule"], set()).add(request["code"])
    return found


def _code(one: StudyFolder, other: StudyFolder) -> Iterator[str]:
    ours, theirs = _by_rule(one), _by_rule(other)
    for rule in sorted(ours.keys() & theirs.keys()):
        if ours[rule] != theirs[rule]:
            yield f"{rule}: {', '.join(sorted(ours[rule]))}; {', '.join(sorted(theirs[rule]))}"


def _environment(one: StudyFolder, other: StudyFolder) -> Iterator[str]:
    locks = [
        sorted({a.statement.request["lock"] for a in folder.artifacts.values() if a.statement})
        for folder in (one, other)
    ]
    if locks[0] != locks[1]:
        yield f"lock of packages: {', '.join(locks[0])}; {', '.join(locks[1])}"
    seen: dict[str, int] = {}
    for place in sorted(one.artifacts.keys() & other.artifacts.keys()):
        runs = [folder.artifacts[place].run or {} for folder in (one, other)]
        for key in _HOW:
            for where, old, new in differences(runs[0].get(key), runs[1].get(key), key):
                message = f"{where}: {old!r}, {new!r}"
                seen[message] = seen.get(message, 0) + 1
    for message, count in seen.items():
        yield f"{message} ({count} artifacts)"


def _artifacts(one: StudyFolder, other: StudyFolder, rules: tuple[str, ...]) -> Iterator[str]:
    for place in sorted({*one.artifacts, *other.artifacts}):
        if not place.startswith(rules):
            continue
        found = [folder.artifacts.get(place) for folder in (one, other)]
        statements = [artifact.statement if artifact else None for artifact in found]
        if statements[0] is None or statements[1] is None:
            yield f"{place}: only the {'second' if statements[0] is None else 'first'} has it"
        elif statements[0].artifact != statements[1].artifact:
            files = [
                name
                for name in sorted({*statements[0].files, *statements[1].files})
                if statements[0].files.get(name) != statements[1].files.get(name)
            ]
            yield f"{place}: {', '.join(files)}"


def _rows(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    keys = ("teacher", "arm", "seed", "step", "task", "metric")
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return {tuple(row[key] for key in keys): row for row in csv.DictReader(stream)}
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no table of numbers: {error}") from error


def _numbers(one: Path, other: Path) -> Iterator[str]:
    """Compare two tables of numbers, the largest relative difference first."""
    ours, theirs = _rows(one), _rows(other)
    apart: list[tuple[float, str]] = []
    for key in ours.keys() | theirs.keys():
        name = "/".join(part for part in key if part)
        if key not in ours or key not in theirs:
            apart.append((math.inf, f"{name}: only in the {'first' if key in ours else 'second'}"))
        elif ours[key] != theirs[key]:
            old, new = (_number(rows[key]["value"]) for rows in (ours, theirs))
            gap = abs(old - new) / max(abs(old), abs(new), 1e-300) if old != new else 0.0
            what = f"{old:.6g}, {new:.6g}" if old != new else "the same value, another interval"
            apart.append((gap, f"{name}: {what}"))
    for _, message in sorted(apart, key=lambda pair: (-pair[0], pair[1])):
        yield message


def _number(text: str) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise UserError(f"metrics.csv holds {text!r:.60} for a number; verify the study") from None


def as_json(difference: Difference) -> dict[str, Any]:
    """Give the differences for machines."""
    return {"differences": difference.found, "same": difference.exit_code == 0}
