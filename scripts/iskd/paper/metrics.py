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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from iskd.errors import UserError
from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.csv_text import EXACT_INTEGERS, csv_text, rounded

METRIC_COLUMNS = (
    *("study", "teacher", "arm", "seed", "step", "reduction", "task", "metric"),
    *("value", "stderr", "low", "high", "n", "clusters"),
)
KEY_COLUMNS = METRIC_COLUMNS[:8]
OPTIONAL_COLUMNS = ("low", "high", "clusters")
"""Columns that a row may leave out; a written table has them all."""

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
    if isinstance(rows, pd.DataFrame):
        _check_columns(rows.columns, where)
        return _checked({name: rows[name].tolist() for name in rows.columns}, len(rows), where)
    given = list(rows)
    for i, row in enumerate(given, start=1):
        _check_columns(row, f"{where}, row {i}")
    cells = {name: [row.get(name) for row in given] for name in METRIC_COLUMNS}
    return _checked(cells, len(given), where)


def write_metrics(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, path: Path) -> None:
    """Write the rows to `path`; the same rows in any order give the same bytes.

    Columns come in the order of `METRIC_COLUMNS`, rows are sorted by `KEY_COLUMNS`, and numbers
    are written as in `csv_text`.

    Raises:
        UserError: as in `tidy`.
    """
    path.write_bytes(csv_text(tidy(rows, path.name)).encode())


def read_metrics(path: Path | str) -> pd.DataFrame:
    """Read a file of `write_metrics`, whatever the order of its columns and rows.

    Returns a frame with the columns `METRIC_COLUMNS`; seed, n and clusters are nullable integers,
    an empty stderr, low or high is NaN.

    Raises:
        UserError: the file is missing or not UTF-8, or its content fails the checks of `tidy`.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    return _parsed(text, str(path)).copy()


# A verification makes hundreds of cards and figures out of the same two tables.
@lru_cache(maxsize=2)
def _parsed(text: str, where: str) -> pd.DataFrame:
    header, *lines = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    _check_columns(header, where)
    for i, cells in enumerate(lines, start=1):
        if len(cells) != len(header):
            raise UserError(f"{where}, row {i}: {len(cells)} cells instead of {len(header)}")
    columns = zip(*lines, strict=True) if lines else [()] * len(header)
    return _checked(dict(zip(header, columns, strict=True)), len(lines), where)


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


def _checked(cells: Mapping[str, Sequence[Any]], count: int, where: str) -> pd.DataFrame:
    """Read cells column by column, since studies of many seeds have thousands of rows.

    Raises:
        UserError: what is wrong with the first row in which anything is.
    """
    typed: dict[str, list[Any]] = {}
    fault, end = "", count  # what is wrong with row `end`: only rows before it are of interest
    for name, (_, read) in _COLUMNS.items():
        typed[name] = []
        try:
            for cell in cells.get(name, [None] * count)[:end]:
                typed[name].append(read(cell))
        except _WrongCellError as error:
            end = len(typed[name])
            fault = f"{name} is {cells[name][end]!r}; it must be {error}"
    frame = pd.DataFrame(
        {name: pd.Series(typed[name][:end], dtype=_COLUMNS[name][0]) for name in METRIC_COLUMNS}
    )
    for wrong, message in _broken_rules(frame):
        if (found := _first(wrong)) < end:
            end = found
            fault = message.format(**frame.iloc[found])
    if fault:
        raise UserError(f"{where}, row {end + 1}: {fault}")
    frame = frame.sort_values(list(KEY_COLUMNS), na_position="first", ignore_index=True)
    _check_agreement(frame, where)
    return frame


def _broken_rules(frame: pd.DataFrame) -> Iterator[tuple[pd.Series, str]]:
    """Give for each rule between the cells of a row which rows break it, and what to say then."""
    low, high = frame["low"], frame["high"]
    yield low.isna() != high.isna(), "an interval needs both low and high"
    yield low > high, "low is above high"
    yield frame["stderr"] < 0, "stderr is negative"
    yield frame["reduction"] >= 1, "reduction is {reduction}; it is a fraction below 1"
    placed = frame["seed"].notna() | (frame["step"] != 0) | (frame["reduction"] != 0)
    own = frame["arm"] == TEACHER_ARM
    yield own & placed, "the teacher has step 0, reduction 0 and no seed"


def _check_agreement(frame: pd.DataFrame, where: str) -> None:
    key = [*_MODEL_COLUMNS, "task", "metric"]
    twice = _first(frame.duplicated(key))
    reductions = frame.groupby(_MODEL_COLUMNS, dropna=False)["reduction"]
    other = _first(frame["reduction"] != reductions.transform("first"))
    if twice < len(frame) and twice <= other:
        raise UserError(f"{where}: two rows for {_spell(frame[key], twice)}")
    if other < len(frame):
        raise UserError(f"{where}: two reductions for {_spell(frame[_MODEL_COLUMNS], other)}")


def _first(wrong: pd.Series) -> int:
    """Give the place of the first row that is wrong; behind the last one where none is."""
    return int(wrong.argmax()) if wrong.any() else len(wrong)


def _spell(keys: pd.DataFrame, place: int) -> str:
    return " / ".join("no seed" if pd.isna(part) else str(part) for part in keys.iloc[place])


class _WrongCellError(ValueError):
    """What a cell must be, and is not."""


def _name(cell: Any) -> str:
    if not isinstance(cell, str) or not cell or not cell.isprintable():
        raise _WrongCellError("printable text")
    return cell


def _number(cell: Any) -> float:
    try:
        # What is kept in memory is what the file can hold, so that both give the same figures.
        number = math.nan if isinstance(cell, bool) else rounded(float(cell))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _WrongCellError("a finite number")
    return number


def _integer(cell: Any) -> int:
    try:
        whole = int(cell)
        exact = not isinstance(cell, bool) and whole >= 0
        exact = exact and (isinstance(cell, str) or whole == cell)
    except (TypeError, ValueError, OverflowError):
        exact = False
    if not exact or whole >= EXACT_INTEGERS:
        raise _WrongCellError("a whole number from 0 on")
    return whole


def _or_empty(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read_or_none(cell: Any) -> Any:
        is_missing = cell == "" if isinstance(cell, str) else cell is None or pd.isna(cell)
        return None if is_missing else read(cell)

    return read_or_none


# Type and reader by column, in the order in which a row's faults are reported.
_COLUMNS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("study", "teacher", "arm", "task", "metric"), ("str", _name)),
    **dict.fromkeys(("seed", "n", "clusters"), ("Int64", _or_empty(_integer))),
    "step": ("int64", _integer),
    **dict.fromkeys(("reduction", "value"), ("float64", _number)),
    **dict.fromkeys(("stderr", "low", "high"), ("float64", _or_empty(_number))),
}
