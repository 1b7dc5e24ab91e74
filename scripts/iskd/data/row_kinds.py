"""What a row of each kind of task must have, and the rows of a file checked for it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iskd.data.rows import BLANK, Row, numbered_rows
from iskd.errors import UserError

CBT_FIELDS = ("sentences", "question", "answer", "options")
"""Fields of cam-cst/cbt that are read here."""

HELLASWAG_FIELDS = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
"""Fields of Rowan/hellaswag that lm-eval's own task reads."""

HELLASWAG_ENDINGS = 4


def _check_text(row: Row, field: str) -> str | None:
    return None if isinstance(row[field], str) else "must be a string"


def _check_texts(row: Row, field: str, at_least: int) -> str | None:
    value = row[field]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return "must be a list of strings"
    if len(value) < at_least:
        return f"has {len(value)} entries, at least {at_least} are needed"
    return None


def _check_cbt(row: Row) -> tuple[str, str] | None:
    """Return the offending field and what is wrong with it, or None for a good row."""
    for field, wrong in (
        ("sentences", _check_texts(row, "sentences", at_least=1)),
        ("question", _check_text(row, "question")),
        ("answer", _check_text(row, "answer")),
        ("options", _check_texts(row, "options", at_least=2)),
    ):
        if wrong:
            return field, wrong
    if BLANK not in row["question"]:
        return "question", f"has no {BLANK}: put it where the removed word stood"
    if row["answer"] not in row["options"]:
        return "answer", "is not among the options: it must be spelled as one of them"
    return None


def _check_hellaswag(row: Row) -> tuple[str, str] | None:
    """Return the offending field and what is wrong with it, or None for a good row."""
    for field in ("activity_label", "ctx_a", "ctx_b"):
        if wrong := _check_text(row, field):
            return field, wrong
    if wrong := _check_texts(row, "endings", at_least=HELLASWAG_ENDINGS):
        return "endings", wrong
    if not all(ending.strip() for ending in row["endings"]):
        return "endings", "holds an empty text: every ending needs words to score"
    if wrong := _check_label(row["label"], len(row["endings"]) - 1):
        return "label", wrong
    return None


def _check_label(label: object, last: int) -> str | None:
    # A bool is an int to Python; the hub keeps the label as a string, other exports as an int.
    if isinstance(label, bool) or not isinstance(label, int | str):
        return f"must be a whole number from 0 to {last}, or that number as a string"
    if label == "":
        return "is empty, as in the hub's test split: use the validation split"
    if str(label) not in {str(index) for index in range(last + 1)}:
        return f"is {str(label)[:20]!r}, out of range: it must lie between 0 and {last}"
    return None


def is_continuation(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is one of HellaSwag, whatever its task calls it."""
    endings = row.get("endings")
    return (
        isinstance(endings, list)
        and all(isinstance(text, str) for text in (row.get("ctx_a"), row.get("ctx_b"), *endings))
        and _check_label(row.get("label"), len(endings) - 1) is None
    )


_Check = Callable[[Row], tuple[str, str] | None]
_SCHEMAS: dict[str, tuple[tuple[str, ...], _Check]] = {
    "cbt_question": (CBT_FIELDS, _check_cbt),
    "cbt_context": (CBT_FIELDS, _check_cbt),
    "hellaswag": (HELLASWAG_FIELDS, _check_hellaswag),
}


def _schema(kind: str) -> tuple[tuple[str, ...], _Check]:
    if kind not in _SCHEMAS:
        raise UserError(f"task kind {kind!r} is not known: use one of {', '.join(_SCHEMAS)}")
    return _SCHEMAS[kind]


def read_rows(path: Path, kind: str) -> list[Row]:
    """Read the rows of a task from a JSONL file and check every one.

    Empty lines are passed over. Fields beyond those of the kind are kept as they are.

    Args:
        path: One JSON object per line, UTF-8, in the schema of the task's data set on the hub.
        kind: Name of a task kind ("cbt_question", "cbt_context", "hellaswag").

    Returns:
        The rows in the file's order; at least one.

    Raises:
        UserError: The kind is unknown, the file cannot be read or holds no row, or a row is
            broken. The message names the file, the line and the field.
    """
    fields, check = _schema(kind)
    rows = []
    for number, row in numbered_rows(path):
        where = f"{path}, line {number}"
        for field in fields:
            if field not in row:
                raise UserError(
                    f"{where}: field '{field}' is missing: a row of kind {kind} "
                    f"needs {', '.join(fields)}"
                )
        if problem := check(row):
            raise UserError(f"{where}: field '{problem[0]}' {problem[1]}")
        rows.append(row)
    return rows
