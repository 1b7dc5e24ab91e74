"""Rows of the tasks: read, sampled with a seed, written as JSON lines.

Whatever the source of a task's rows (made here, a user's file, the hub), the workflow first turns
them into one local JSONL file in the hub's own schema. What a row of a kind must have stands in
:mod:`iskd.data.row_kinds`: who only writes or draws rows is not made again for a new kind. Nothing
but the standard library is imported, so that a config can be checked at parse time.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iskd.errors import UserError

Row = dict[str, Any]

BLANK = "XXXXX"
"""What stands for the removed word in a question of the Children's Book Test."""


def _parse(raw: bytes, where: str) -> Row:
    try:
        row = json.loads(raw.decode("utf-8"))
        # An escaped half of a surrogate pair parses, but no tokenizer and no file takes it.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start + 1} is not UTF-8: save the file as UTF-8"
        ) from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: holds half of a surrogate pair, which is no character: remove it"
        ) from error
    except (ValueError, RecursionError) as error:  # plain: a number of too many digits
        raise UserError(
            f"{where}: broken JSON ({error}): each line must hold one JSON object"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: holds a {type(row).__name__}, each line must be a JSON object")
    return row


def read_any_rows(path: Path) -> list[Row]:
    """Read rows from a JSONL file, whatever their fields are; at least one.

    Args:
        path: One JSON object per line, UTF-8. Empty lines are passed over.

    Returns:
        The rows in the file's order.

    Raises:
        UserError: The file cannot be read or holds no row, or a line is no JSON object.
    """
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> list[tuple[int, Row]]:
    """Read rows as :func:`read_any_rows` does, each with the number of its line.

    Raises:
        UserError: Likewise.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): give the path of a JSONL file"
        ) from error
    rows = [
        (number, _parse(raw, f"{path}, line {number}"))
        for number, raw in enumerate(lines, start=1)
        if raw.strip()
    ]
    if not rows:
        raise UserError(f"{path}: holds no rows: give one JSON object per line")
    return rows


def seeded_order(count: int, rng: random.Random) -> list[int]:
    """Return 0 .. count-1 in random order.

    Of `random`'s methods only `random()` is promised to give the same numbers in every Python
    version, so the order is made from that one alone.
    """
    keys = [rng.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def sample_rows(rows: Sequence[Row], n: int, seed: int) -> list[Row]:
    """Draw n rows without replacement, in the order they had.

    The head of a file is never a fair sample: the first rows of HellaSwag are easier than the rest.

    Args:
        rows: The rows to draw from.
        n: How many; all of them are returned when there are no more than n.
        seed: Seed of the draw.

    Raises:
        UserError: n is below 1.
    """
    return [rows[index] for index in sample_indices(len(rows), n, seed)]


def sample_indices(count: int, n: int, seed: int) -> list[int]:
    """Return the ascending positions that :func:`sample_rows` draws out of `count` rows.

    Raises:
        UserError: n is below 1.
    """
    if n < 1:
        raise UserError(f"number of rows to sample is {n}: it must be at least 1")
    if n >= count:
        return list(range(count))
    return sorted(seeded_order(count, random.Random(seed))[:n])


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSONL (UTF-8, newline-terminated), the same bytes for the same rows."""
    path.write_bytes(
        b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n" for row in rows)
    )
