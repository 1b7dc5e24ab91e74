"""Frames as CSV whose bytes depend on their content alone."""

import csv
import io
import numbers
from typing import Any

import pandas as pd

# Above this a float no longer tells neighbouring integers apart.
EXACT_INTEGERS = 2**53


def csv_text(frame: pd.DataFrame) -> str:
    """Return the frame as CSV text that depends on its content alone.

    Whole numbers have no decimal point, other floats are the shortest text for their value rounded
    to 10 significant digits, missing values are empty, and lines end in a line feed.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(frame.columns)
    for row in frame.itertuples(index=False, name=None):
        writer.writerow([_cell_text(cell) for cell in row])
    return buffer.getvalue()


def rounded(number: float) -> float:
    """Round to the digits that are written, and turn -0.0 into 0.0."""
    if number.is_integer() and abs(number) < EXACT_INTEGERS:
        return number + 0.0
    return float(f"{number:.10g}") + 0.0


def _cell_text(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    if bool(pd.isna(cell)):
        return ""
    if isinstance(cell, numbers.Integral):
        return str(int(cell))
    number = rounded(float(cell))
    if number.is_integer() and abs(number) < EXACT_INTEGERS:
        return str(int(number))
    return repr(number)
