"""Every number of the tables and macros again, from what tests/recompute.py makes of the items."""

import csv
import hashlib
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.recompute import Key, Number, model_of, read_lines, recompute

Group = tuple[str, str, int, str, str]
"""A teacher, an arm, a step, a task, a metric: all seeds together."""

TABLES = ("main", "significance", "ablation", "efficiency", "costs")


@dataclass
class Summary:
    """A number over seeds."""

    value: float
    spread: float
    low: float
    high: float
    values: list[float]


def close(one: float, other: float) -> bool:
    """Compare with a number of a CSV file, which has ten digits."""
    return (math.isnan(one) and math.isnan(other)) or math.isclose(
        one, other, rel_tol=2e-9, abs_tol=1e-8
    )


def measured(folder: Path, chained: Sequence[str]) -> dict[Key, Number]:
    """Recompute measurements.csv from repeats and from what the jobs say of themselves."""
    found: dict[Key, Number] = {}
    theirs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((folder / "measure_efficiency").rglob("repeats.jsonl")):
        teacher, arm, seed, step = path.parent.relative_to(folder / "measure_efficiency").parts
        records = read_lines(path)
        theirs[teacher] += [record for record in records if record["who"] == "teacher"]
        model = (teacher, arm, int(seed[5:]), int(step[5:]))
        for name, values in _speeds(records, "model").items():
            _median(found, (*model, "efficiency", name), values)
            other = _speeds(records, "teacher")[name]
            ratios = [a / b for a, b in zip(values, other, strict=True)]
            _median(found, (*model, "efficiency", f"{name}_ratio"), ratios)
    for teacher, records in theirs.items():
        for name, values in _speeds(records, "teacher").items():
            chosen = values[-1:] if name.startswith("memory") else values
            _median(found, (teacher, "teacher", None, 0, "efficiency", name), chosen)
    _costs(folder, chained, found)
    return found


def _speeds(records: Iterable[Mapping[str, Any]], who: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record["who"] == who:
            name = f"{record['phase']}_b{record['batch_size']}"
            held = record.get("bytes")
            found[name].append(held if held else record["tokens"] / record["seconds"])
    return found


def _median(found: dict[Key, Number], key: Key, values: Sequence[float]) -> None:
    plain = key[5].startswith("memory")
    ends = (math.nan, math.nan) if plain else (min(values), max(values))
    found[key] = Number(statistics.median(values), math.nan, *ends)


def _costs(folder: Path, chained: Sequence[str], found: dict[Key, Number]) -> None:
    hours: dict[tuple[str, ...], float] = {}
    for path in sorted(folder.rglob("run.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        devices = run["gpus"] or run["threads"] * run["processes"]
        hours[path.parent.relative_to(folder).parts] = run["seconds_in_all"] * devices / 3600
    evaluated: dict[Key, float] = defaultdict(float)
    for (rule, *parts), spent in hours.items():
        if rule == "pretrain_teacher":
            found[parts[0], "teacher", None, 0, "cost", "device_hours"] = Number(spent)
        elif rule in ("evaluate", "evaluate_heldout"):
            model = model_of(parts[:-1])
            evaluated[*model, "cost", "evaluation_hours"] += spent
        elif len(parts) == 4 and (folder / rule / Path(*parts) / "history.jsonl").exists():
            teacher, arm, seed, step = parts
            steps = range(1, int(step[5:]) + 1) if arm in chained else [int(step[5:])]
            total = sum(hours[rule, teacher, arm, seed, f"step_{each:02}"] for each in steps)
            key = (teacher, arm, int(seed[5:]), int(step[5:]), "cost", "device_hours")
            found[key] = Number(total)
    found.update({key: Number(value) for key, value in evaluated.items()})


class Paper:
    """The tables and macros of a finished study, and what they should say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = recompute(folder)
        chained = sorted({key[1] for key in own if key[5] == "replaced_block"})
        self.numbers = own | measured(folder, chained)
        self.groups: dict[Group, Summary] = {}
        seeds: dict[Group, list[Number]] = defaultdict(list)
        for (teacher, arm, _, step, task, metric), number in self.numbers.items():
            seeds[teacher, arm, step, task, metric].append(number)
        for group, numbers in seeds.items():
            values = [number.value for number in numbers]
            if len(values) > 1:
                spread, low, high = statistics.stdev(values), min(values), max(values)
            else:
                spread, low, high = numbers[0].stderr, numbers[0].low, numbers[0].high
            self.groups[group] = Summary(statistics.fmean(values), spread, low, high, values)

    def rows(self, table: str) -> list[dict[str, str]]:
        """Read a table's CSV."""
        path = self.folder / f"table_{table}" / f"{table}.csv"
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))

    def printed(self, table: str) -> list[list[str]]:
        """Read the cells of a table's Markdown, without its head."""
        path = self.folder / f"table_{table}" / f"{table}.md"
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
        return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]

    def get(self, row: Mapping[str, str], task: str, metric: str) -> Summary | None:
        """Find what a row's model has of a metric."""
        group = (row["teacher"], row["arm"], int(row["step"]), task, metric)
        return self.groups.get(group)

    def teacher(self, row: Mapping[str, str], task: str, metric: str) -> float:
        """Give the teacher's value of a metric."""
        return self.groups[row["teacher"], "teacher", 0, task, metric].value

    def expected(self, table: str, row: Mapping[str, str], column: str) -> float:
        """Say what a cell should hold; NaN where it should be empty."""
        if table == "significance":
            return self._significance(row, column)
        if column in ("parameters", "reduction"):
            size = self.get(row, "model", "parameters")
            assert size is not None
            whole = self.teacher(row, "model", "parameters")
            return size.value if column == "parameters" else 1 - size.value / whole
        if column in ("tokens", "training_flops", "flops_per_token"):
            task = "model" if column == "flops_per_token" else "training"
            found = self.get(row, task, column.removeprefix("training_"))
            return math.nan if found is None else found.value
        if column in ("gap", "closed"):
            return self._gap(row, column)
        task, metric, *part = column.split("/")
        return self._score(row, task, metric, part[0] if part else "value")

    def _score(self, row: Mapping[str, str], task: str, metric: str, part: str) -> float:
        found = self.get(row, task, metric)
        if found is None:
            return math.nan
        if part in ("value", "spread", "low", "high"):
            return float(getattr(found, part))
        name, _, end = part.rpartition("_")
        if end in ("low", "high"):
            kind = "margin" if name == "corrected_retention" else "retention"
            kept = self.get(row, task, f"{metric}_{kind}")
            return math.nan if kept is None else float(getattr(kept, end))
        level = 0.0
        if part == "corrected_retention":
            level = self.groups[row["teacher"], "teacher", 0, task, "chance"].value
        own = self.teacher(row, task, metric)
        return (found.value - level) / (own - level) if own > level else math.nan

    def _gap(self, row: Mapping[str, str], column: str) -> float:
        def gap(arm: str, step: int) -> float:
            group = (row["teacher"], arm, step, "heldout", "loss")
            return self.groups[group].value - self.teacher(row, "heldout", "loss")

        own = gap(row["arm"], int(row["step"]))
        if column == "gap":
            return own
        last = max(step for _, arm, step, *_ in self.groups if arm == "iskd")
        return 1 - own / gap("iskd", last)

    def _significance(self, row: Mapping[str, str], column: str) -> float:
        task, metric = row["task"], row["metric"]
        score = self.get(row, task, metric)
        assert score is not None
        own = self.teacher(row, task, metric)
        if column in ("n", "clusters"):
            return next(
                float(getattr(number, column))
                for key, number in self.numbers.items()
                if (key[0], key[1], *key[3:])
                == (row["teacher"], row["arm"], int(row["step"]), task, metric)
            )
        if column in ("score", "teacher_score"):
            return score.value if column == "score" else own
        if column == "difference":
            return score.value - own
        if column in ("low", "high"):
            found = self.get(row, task, f"{metric}_difference")
            return math.nan if found is None else float(getattr(found, column))
        if column in ("p_low", "p_high"):
            found = self.get(row, task, f"{metric}_mcnemar")
            pick = min if column == "p_low" else max
            return math.nan if found is None else pick(found.values)
        name = column if column in ("kl", "agreement") else f"{metric}_{column}"
        found = self.get(row, task, name)
        return math.nan if found is None else found.value


WORDS = ("study", "teacher", "arm", "task", "metric", "step", "seeds")
FACTORS = (1, 100, 1e-6, 1e-3)
"""What a stored number is multiplied by where it is printed: %, MB, kJ."""


def check_table(paper: Paper, table: str) -> int:
    """Compare every number of a table's CSV and Markdown; give how many there were."""
    rows, counted = paper.rows(table), 0
    assert rows
    for row, cells in zip(rows, paper.printed(table), strict=True):
        known: list[float] = [float(row["step"]), float(row["seeds"])]
        for column, text in row.items():
            if column in WORDS or column.endswith("spread_of"):
                continue
            wanted = paper.expected(table, row, column)
            assert close(float(text or "nan"), wanted), (table, row["arm"], column, text, wanted)
            known.append(wanted)
            counted += 1
        if table == "efficiency":
            size, count = (float(row[f"model/{n}"]) for n in ("checkpoint_bytes", "parameters"))
            known.append(8 * (size // count))
        if row["arm"] == "teacher":
            known.append(1.0)  # what the others' ratios are to
        for cell in cells:
            for text in numbers_in(cell):
                assert any(prints(text, value * f) for value in known for f in FACTORS), (
                    table,
                    row["arm"],
                    cell,
                )
                counted += 1
    return counted


def numbers_in(cell: str) -> list[str]:
    """Find the numbers that are printed in a cell of a table; words with digits are none."""
    return re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\w.])", cell)


def prints(text: str, value: float) -> bool:
    """Tell whether a text is a rounding of a number, to as many digits as it shows."""
    if math.isnan(value):
        return False
    mantissa, _, exponent = text.replace(",", "").partition("e")
    decimals = len(mantissa.partition(".")[2])
    half = 0.5 * 10.0 ** (int(exponent or 0) - decimals)
    return abs(float(text.replace(",", "")) - value) <= half * (1 + 1e-6) + 1e-12


def check_macros(paper: Paper, rule: str) -> int:
    """Compare every macro, in CSV and LaTeX; give how many there were."""
    folder = paper.folder / rule
    with (folder / "numbers.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    tex = (folder / "numbers.tex").read_text(encoding="utf-8")
    written = dict(re.findall(r"^\\newcommand\{(\\[A-Za-z]+)\}\{(.*)\} % ", tex, re.MULTILINE))
    if rule == "paper_numbers":
        manifest = paper.folder / "collect_metrics/manifest.json"
        root = hashlib.sha256(manifest.read_bytes()).hexdigest()
        assert written.pop("\\iskdStudyRoot") == root
    assert len(written) == len(rows)
    factors = {"%": 100, "points": 100, "MB": 1e-6, "kJ": 1e-3}
    for row in rows:
        task, metric = row["task"], row["metric"]
        if (task, metric) == ("model", "reduction"):
            value = paper.expected("main", row, "reduction")
        else:
            found = paper.get(row, task, metric)
            assert found is not None, row
            value = max(found.values) if metric.endswith("_mcnemar") else found.value
        assert close(float(row["value"]), value), (row, value)
        # LaTeX's minus sign and power of ten.
        shown = written[row["macro"]].replace("$-$", "-")
        shown = re.sub(r"\$\\times10\^\{(-?\d+)\}\$", r"e\1", shown)
        if shown.startswith(r"\textless{}"):
            assert value < float(shown.removeprefix(r"\textless{}")), row
            continue
        assert prints(shown, value * factors.get(row["unit"], 1)), (row, shown, value)
    return len(rows)


def check_numbers(found: Mapping[Key, Number], wanted: Mapping[Key, Number]) -> int:
    """Compare two tables of numbers, errors and intervals included; give how many there were."""
    assert set(found) == set(wanted)
    for key, number in found.items():
        for name in ("value", "stderr", "low", "high", "n", "clusters"):
            one, other = getattr(number, name), getattr(wanted[key], name)
            assert close(one, other), (key, name, one, other)
    return len(found)
