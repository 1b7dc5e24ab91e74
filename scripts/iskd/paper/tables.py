"""A table of results as files, with its numbers rounded for readers."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from iskd.paper.columns import Column
from iskd.paper.formats import MISSING, SHARE, Quantity, fixed, quantity, with_interval, with_spread
from iskd.paper.layout import save_columns
from iskd.paper.measures import MEASURES, measure
from iskd.paper.style import arm_styles, in_arm_order, task_title

CLAIMED = "(claimed)"
"""What the column `arm` says in a row of claimed numbers; no arm can have this name."""

_IDENTITY = {
    "study": "Study",
    "teacher": "Teacher",
    "arm": "Arm",
    "step": "Step",
    "seeds": "Seeds",
    "parameters": "Parameters",
    "reduction": "Reduction",
    "gap": "Gap (nats/token)",
    "closed": "Closed",
    "tokens": "Tokens",
    "training_flops": "Training FLOPs",
    "flops_per_token": "FLOPs/token",
}
_KEYS = ("study", "teacher", "arm", "step")
_PERCENT = ("reduction", "closed")
_SCIENTIFIC = Quantity("", scientific=True)
_SCIENTIFIC_COLUMNS = ("training_flops", "flops_per_token")
_RETENTIONS = {"retention": "kept", "corrected_retention": "margin"}


def save_table(
    frame: pd.DataFrame,
    stem: Path,
    caption: str,
    label: str,
    columns: Iterable[Column] | None = None,
) -> None:
    """Write a table as `<stem>.csv` (raw numbers), `.md`, `.html` and `.tex` (for readers).

    The columns of `main_table` and `ablation_table` get heads of their own and one cell for a score
    and its spread; any other column keeps its name, unless `columns` says how the table reads.

    Args:
        frame: the table; the index is left out.
        stem: the path without its suffix.
        caption: plain text.
        label: the LaTeX label, of letters, digits and ":.-".
        columns: the table for readers.

    Raises:
        UserError: the label has other characters.
    """
    readable = _readable(frame) if columns is None else list(columns)
    # Rows of one teacher belong together; a rule parts them from the next teacher's.
    names = [name for name in ("study", "teacher") if name in frame.columns]
    owners = list(frame[names].itertuples(index=False, name=None)) if names else [()] * len(frame)
    breaks = frozenset(i for i in range(1, len(owners)) if owners[i] != owners[i - 1])
    save_columns(readable, frame, stem, caption, label, breaks=breaks)


def save_study_table(
    frame: pd.DataFrame,
    stem: Path,
    study: str,
    about: str,
    columns: Iterable[Column] | None = None,
) -> None:
    """Write a table as `save_table` does, with the study's name before caption and label."""
    save_table(frame, stem, f"Study {study}: {about}", f"tab:{study}-{stem.name}", columns)


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by study and teacher, arms as `iskd.paper.style.arm_styles` lists them, and step.

    Rows of one model keep their order.
    """
    return in_arm_order(frame, "study", "teacher", "arm", "step")


def key_columns(frame: pd.DataFrame) -> list[Column]:
    """Give the columns that say which model a row is about, as far as rows differ in them.

    The frame has study, teacher, arm, step and seeds.
    """
    names = [name for name in (*_KEYS, "seeds") if name not in _hidden(frame)]
    return [_plain_column(frame[name], name) for name in names]


def _hidden(frame: pd.DataFrame) -> list[str]:
    """List the columns that would say the same in every row."""
    hidden = [n for n in ("study", "teacher") if n in frame.columns and frame[n].nunique() < 2]
    if "seeds" in frame.columns and not (frame["seeds"] > 1).any():
        hidden.append("seeds")
    return hidden


def _readable(frame: pd.DataFrame) -> list[Column]:
    hidden = _hidden(frame)
    columns = []
    for name in frame.columns:
        task, metric, part = [*name.split("/"), "", ""][:3]
        if name in hidden:
            continue
        if metric not in MEASURES:
            columns.append(_plain_column(frame[name], name))
        elif part in ("", *_RETENTIONS):
            columns.append(_task_column(frame, name, task, metric, part))
    return columns


def _task_column(frame: pd.DataFrame, name: str, task: str, metric: str, part: str) -> Column:
    group = task_title(task)
    # A second metric of the task has a group of its own if both have columns "kept" and "margin".
    ends = tuple(f"/{part}" for part in _RETENTIONS)
    alike = {
        n.split("/")[1] for n in frame.columns if n.startswith(f"{task}/") and n.endswith(ends)
    }
    if len(alike) > 1:
        group = f"{group}, {measure(metric).short}"
    missing = pd.Series(float("nan"), index=frame.index)
    if part:
        low, high = (frame.get(f"{name}_{end}", missing) for end in ("low", "high"))
        rows = zip(frame[name], low, high, strict=True)
        cells = [with_interval(value, first, last, SHARE) for value, first, last in rows]
        return Column(group, _RETENTIONS[part], "%", cells)
    how = quantity(task, metric)
    spreads = frame.get(f"{name}/spread", missing)
    cells = [with_spread(v, s, how) for v, s in zip(frame[name], spreads, strict=True)]
    return Column(group, measure(metric).short, how.unit, cells)


def _plain_column(values: pd.Series, name: str) -> Column:
    head, key = _IDENTITY.get(name, name), name in _KEYS
    if name == "arm":
        styles = arm_styles(arm for arm in values if arm != CLAIMED)
        cells = ["Claimed" if arm == CLAIMED else styles[arm].label for arm in values]
        return Column("", head, "", cells, is_text=True, is_key=True)
    if name in _SCIENTIFIC_COLUMNS:
        return Column("", head, "", [_SCIENTIFIC.text(value) for value in values])
    if name in _PERCENT:
        return Column("", head, "%", [SHARE.text(value) for value in values])
    if not pd.api.types.is_numeric_dtype(values):
        cells = [MISSING if pd.isna(value) else str(value) for value in values]
        return Column("", head, "", cells, is_text=True, is_key=key)
    decimals = 0 if pd.api.types.is_integer_dtype(values) else 3
    return Column("", head, "", [fixed(value, decimals) for value in values], is_key=key)
