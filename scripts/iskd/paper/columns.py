"""The columns of a table for readers."""

import itertools
from collections.abc import Sequence
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


def own_head(column: Column) -> str:
    """Give what stands right above a column's cells."""
    return column.head if column.group else with_unit(column.head, column.unit)
