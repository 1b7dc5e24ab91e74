"""The columns of a table for readers."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iskd.paper.formats import with_unit


@dataclass(frozen=True)
class Column:
    """One column for readers; those of one group share its unit and stand side by side.

    Attributes:
        group: the head that the columns of a group share; may be empty.
        head: the column's own head.
        unit: printed once for a group, or behind the head.
        cells: what stands in the rows, as text.
        is_text: left-aligned.
        is_key: says what a row is about; repeated where a table is too wide for a page.
    """

    group: str
    head: str
    unit: str
    cells: list[str]
    is_text: bool = False
    is_key: bool = False


def groups_of(columns: Sequence[Column]) -> list[tuple[tuple[str, str], list[Column]]]:
    """Give neighbours that share a group, and unit."""
    found = itertools.groupby(columns, lambda c: (c.group, c.unit if c.group else ""))
    return [(key, list(members)) for key, members in found]


def share_out(
    columns: Sequence[Column],
    room: float,
    width: Callable[[tuple[str, str], Sequence[Column]], float],
) -> list[list[Column]]:
    """Share columns out to tables of at most some width; each begins with the columns of keys.

    Args:
        columns: of the whole table.
        room: the most that a table may take.
        width: of neighbours, by what they share: group and unit, both empty for none.
    """
    keys = [column for column in columns if column.is_key]
    left = room - width(("", ""), keys)
    tables: list[list[Column]] = []
    used = 0.0
    for key, members in groups_of([column for column in columns if not column.is_key]):
        parts = [members]
        if not key[0] or width(key, members) > left:
            parts = [[column] for column in members]
        for part in parts:
            own = width(key, part)
            if not tables or used + own > left:
                tables.append([])
                used = 0.0
            tables[-1] += part
            used += own
    return [keys + table for table in tables]


def own_head(column: Column) -> str:
    """Give what stands right above a column's cells."""
    return column.head if column.group else with_unit(column.head, column.unit)
