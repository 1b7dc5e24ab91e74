"""The tidy table `metrics.csv`: every number of a study, one row each.

| column | what it holds |
|---|---|
| study, teacher, arm | names; the teacher itself is the arm `teacher` |
| seed | integer for an arm that was trained; empty for the teacher and for models taken as given |
| step | replaced blocks, or the training budget of `teacher_tuned`; 0 for the teacher |
| reduction | 1 - parameters / the teacher's parameters, a fraction |
| task, metric | what was measured, see `MEASURES`; facts of the model have the task `model` |
| value | accuracies as fractions, loss in nats per token, parameters as a count |
| stderr | standard error of `value` over the task's items, in the unit of `value`; may be empty |
| low, high | ends of its 95 % interval, in the unit of `value`; may be empty |
| n | number of items; may be empty |
| clusters | number of sources (passages, stories) that the items come from; may be empty |
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from iskd.errors import UserError
from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.csv_text import EXACT_INTEGERS, csv_text, rounded

METRIC_COLUMNS = (
    "study",
    "teacher",
    "arm",
    "seed",
    "step",
    "reduction",
    "task",
    "metric",
    "value",
    "stderr",
    "low",
    "high",
    "n",
    "clusters",
)
KEY_COLUMNS = METRIC_COLUMNS[:8]
OPTIONAL_COLUMNS = ("low", "high", "clusters")
"""Columns that a row may leave out; a written table has them all."""

_NAME_COLUMNS = ("study", "teacher", "arm", "task", "metric")
_DTYPES = {
    **dict.fromkeys(_NAME_COLUMNS, "str"),
    "seed": "Int64",
    "step": "int64",
    "reduction": "float64",
    "value": "float64",
    "stderr": "float64",
    "low": "float64",
    "high": "float64",
    "n": "Int64",
    "clusters": "Int64",
}
_INTEGER_COLUMNS = ("seed", "step", "n", "clusters")
_FLOAT_COLUMNS = ("reduction", "value", "stderr", "low", "high")
_MODEL_COLUMNS = ["study", "teacher", "arm", "seed", "step"]


def tidy(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, where: str = "metrics") -> pd.DataFrame:
    """Return the rows checked, typed and in canonical order.

    Args:
        rows: mappings with the keys `METRIC_COLUMNS`, of which `OPTIONAL_COLUMNS` may be left out,
            or a frame with these columns. None, NaN and the empty string stand for an empty seed,
            stderr, low, high, n or clusters.
        where: where the rows come from, for messages.

    Raises:
        UserError: a column is missing or unknown, a cell is not what its column holds, two rows
            measure the same thing, or one model has two reductions.
    """
    given: Iterable[Any] = rows
    if isinstance(rows, pd.DataFrame):
        quickly = _tidied(rows)
        if quickly is not None:
            return quickly
        _check_columns(rows.columns, where)
        given = rows.to_dict("records")
    checked = [_checked_row(row, f"{where}, row {i}") for i, row in enumerate(given, start=1)]
    checked.sort(key=_sort_key)
    _check_agreement(checked, where)
    columns = {name: [row[name] for row in checked] for name in METRIC_COLUMNS}
    return pd.DataFrame(
        {name: pd.Series(columns[name], dtype=_DTYPES[name]) for name in METRIC_COLUMNS}
    )


def _typed(header: list[str], lines: list[list[str]]) -> pd.DataFrame | None:
    """Read cells column by column; None unless each of them is plainly what it shall be."""
    if sorted(header) != sorted(METRIC_COLUMNS) or any(len(x) != len(header) for x in lines):
        return None
    columns = dict(zip(header, zip(*lines, strict=True), strict=True)) if lines else {}
    made: dict[str, pd.Series] = {}
    try:
        for name in METRIC_COLUMNS:
            cells = columns.get(name, ())
            values: list[Any] = list(cells)
            if name in _INTEGER_COLUMNS:
                values = [int(cell) if cell else None for cell in cells]
            elif name in _FLOAT_COLUMNS:
                values = [float(cell) if cell else math.nan for cell in cells]
                if sum(map(math.isnan, values)) > cells.count(""):
                    return None
            made[name] = pd.Series(values, dtype=_DTYPES[name])
    except (ValueError, TypeError, OverflowError):
        return None
    return pd.DataFrame(made)


def _tidied(frame: pd.DataFrame) -> pd.DataFrame | None:
    """Do what :func:`tidy` does, column by column, to a frame in which all is right.

    Studies of many seeds have thousands of rows, and dozens of jobs that read them.

    Returns:
        None where anything is not plainly right: row by row it is said what.
    """
    if list(frame.columns) != list(METRIC_COLUMNS):
        return None
    if any(frame[name].dtype != _DTYPES[name] for name in METRIC_COLUMNS):
        return None
    names = [name for column in _NAME_COLUMNS for name in frame[column].unique()]
    if not all(isinstance(name, str) and name and name.isprintable() for name in names):
        return None
    made = frame.copy()
    for name in _FLOAT_COLUMNS:
        made[name] = [rounded(x) if math.isfinite(x) else x for x in frame[name].tolist()]
    whole = made[list(_INTEGER_COLUMNS)]
    between = (whole >= 0) & (whole < EXACT_INTEGERS)
    low, high, own = made["low"], made["high"], made["arm"] == TEACHER_ARM
    right = (
        between.fillna(True).to_numpy().all()
        and made[["value", "reduction"]].abs().lt(math.inf).to_numpy().all()
        and not made[["stderr", "low", "high"]].isin([math.inf, -math.inf]).to_numpy().any()
        and (low.isna() == high.isna()).all()
        and not (low > high).any()
        and not (made["stderr"] < 0).any()
        and (made["reduction"] < 1).all()
        and made.loc[own, "seed"].isna().all()
        and (made.loc[own, ["step", "reduction"]] == 0).to_numpy().all()
        and not made.duplicated([*_MODEL_COLUMNS, "task", "metric"]).any()
        and not made[[*_MODEL_COLUMNS, "reduction"]]
        .drop_duplicates()
        .duplicated(_MODEL_COLUMNS)
        .any()
    )
    if not right:
        return None
    return made.sort_values(list(KEY_COLUMNS), na_position="first", ignore_index=True)


def write_metrics(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, path: Path) -> None:
    """Write the rows to `path`; the same rows in any order give the same bytes.

    Columns come in the order of `METRIC_COLUMNS`, rows are sorted by `KEY_COLUMNS`, and numbers
    are written as in `csv_text`.

    Raises:
        UserError: as in `tidy`.
    """
    path.write_bytes(csv_text(tidy(rows, path.name)).encode())


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a file of `write_metrics`, whatever the order of its columns and rows.

    Returns a frame with the columns `METRIC_COLUMNS`; seed, n and clusters are nullable integers,
    an empty stderr, low or high is NaN.

    Raises:
        UserError: the file is missing or not UTF-8, or its content fails the checks of `tidy`.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    return _parsed(text, str(path)).copy()


# A verification makes hundreds of cards and figures out of the same two tables.
@lru_cache(maxsize=2)
def _parsed(text: str, where: str) -> pd.DataFrame:
    lines = list(csv.reader(io.StringIO(text, newline="")))
    header = lines[0] if lines else []
    typed = _typed(header, lines[1:])
    quickly = None if typed is None else _tidied(typed)
    if quickly is not None:
        return quickly
    _check_columns(header, where)
    rows = []
    for i, cells in enumerate(lines[1:], start=1):
        if len(cells) != len(header):
            raise UserError(f"{where}, row {i}: {len(cells)} cells instead of {len(header)}")
        rows.append(dict(zip(header, cells, strict=True)))
    return tidy(rows, where)


def _check_columns(names: Iterable[str], where: str) -> None:
    given = list(names)
    missing = [n for n in METRIC_COLUMNS if n not in given and n not in OPTIONAL_COLUMNS]
    unknown = sorted({str(name) for name in given} - set(METRIC_COLUMNS))
    if missing:
        raise UserError(f"{where}: missing columns: {', '.join(missing)}")
    if unknown:
        raise UserError(f"{where}: unknown columns: {', '.join(unknown)}")
    if len(given) != len(set(given)):
        raise UserError(f"{where}: a column is there twice")


def _checked_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    _check_columns(row, where)
    checked: dict[str, Any] = {}
    for name in _NAME_COLUMNS:
        checked[name] = _name(row[name], where, name)
    row = dict.fromkeys(OPTIONAL_COLUMNS) | dict(row)
    for name in ("seed", "n", "clusters"):
        checked[name] = None if _is_missing(row[name]) else _integer(row[name], where, name)
    checked["step"] = _integer(row["step"], where, "step")
    for name in ("reduction", "value"):
        checked[name] = _number(row[name], where, name)
    for name in ("stderr", "low", "high"):
        checked[name] = None if _is_missing(row[name]) else _number(row[name], where, name)
    if (checked["low"] is None) != (checked["high"] is None):
        raise UserError(f"{where}: an interval needs both low and high")
    if checked["low"] is not None and checked["low"] > checked["high"]:
        raise UserError(f"{where}: low is above high")
    if checked["stderr"] is not None and checked["stderr"] < 0:
        raise UserError(f"{where}: stderr is negative")
    if checked["reduction"] >= 1:
        raise UserError(f"{where}: reduction is {checked['reduction']}; it is a fraction below 1")
    if checked["arm"] == TEACHER_ARM and (
        checked["seed"] is not None or checked["step"] != 0 or checked["reduction"] != 0
    ):
        raise UserError(f"{where}: the teacher has step 0, reduction 0 and no seed")
    return checked


def _check_agreement(rows: list[dict[str, Any]], where: str) -> None:
    seen: set[tuple[Any, ...]] = set()
    reductions: dict[tuple[Any, ...], float] = {}
    for row in rows:
        model = tuple(row[name] for name in _MODEL_COLUMNS)
        key = (*model, row["task"], row["metric"])
        if key in seen:
            raise UserError(f"{where}: two rows for {_spell(key)}")
        seen.add(key)
        if reductions.setdefault(model, row["reduction"]) != row["reduction"]:
            raise UserError(f"{where}: two reductions for {_spell(model)}")


def _spell(key: tuple[Any, ...]) -> str:
    return " / ".join("no seed" if part is None else str(part) for part in key)


def _sort_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    # None and integers do not compare; the flag puts rows without a seed first.
    return tuple(
        (row[name] is not None, row[name] or 0) if name == "seed" else row[name]
        for name in KEY_COLUMNS
    )


def _is_missing(value: Any) -> bool:
    return value == "" if isinstance(value, str) else bool(pd.isna(value))


def _name(value: Any, where: str, column: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise UserError(f"{where}: {column} is {value!r}; it must be printable text")
    return value


def _number(value: Any, where: str, column: str) -> float:
    try:
        # What is kept in memory is what the file can hold, so that both give the same figures.
        number = math.nan if isinstance(value, bool) else rounded(float(value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {column} is {value!r}; it must be a finite number")
    return number


def _integer(value: Any, where: str, column: str) -> int:
    try:
        whole = int(value)
        exact = not isinstance(value, bool) and whole >= 0
        exact = exact and (isinstance(value, str) or whole == value)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or whole >= EXACT_INTEGERS:
        raise UserError(f"{where}: {column} is {value!r}; it must be a whole number from 0 on")
    return whole
