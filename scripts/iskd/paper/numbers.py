"""A LaTeX macro for every number that one would write in a sentence."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from iskd.errors import UserError
from iskd.paper.columns import Column
from iskd.paper.csv_text import csv_text
from iskd.paper.formats import is_known, p_value, quantity
from iskd.paper.latex import escape_tex
from iskd.paper.layout import markdown_rows
from iskd.paper.measures import CHANCE
from iskd.paper.metrics import tidy
from iskd.paper.queries import at_headline

PREFIX = "iskd"
REDUCTION = "reduction"
ROOT_MACRO = f"\\{PREFIX}StudyRoot"
"""Prints the digest of the statement of metrics.csv, which names all before it by digest."""
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_P = "_mcnemar"


def macro_name(*parts: str) -> str:
    r"""Make a LaTeX control word: ``gpt2``, ``kd``, ``acc`` -> ``\iskdGptTwoKdAcc``.

    LaTeX takes letters alone, so digits are spelled and other signs part words.
    """
    words: list[str] = []
    for part in parts:
        for piece in re.findall(r"[A-Za-z]+|\d", part):
            word = _DIGITS[int(piece)] if piece.isdigit() else piece[:1].upper() + piece[1:]
            words.append(word)
    return f"\\{PREFIX}{''.join(words)}"


def numbers_table(metrics: pd.DataFrame, headline_step: Mapping[str, int]) -> pd.DataFrame:
    """Return every number of each arm at its last step, up to the step that is reported.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`, of metrics.csv or measurements.csv.
        headline_step: that step, per teacher.

    Returns:
        Columns macro, text (as it is printed, without unit), unit, value (unrounded mean over
        seeds; of p values the largest one), low and high (of the row where there is one seed, else
        the smallest and largest seed), seeds, teacher, arm, step, task, metric, meaning. The
        reduction of a model is a number of its own (task ``model``, metric ``reduction``).

    Raises:
        UserError: two numbers would get one name.
    """
    if metrics.empty:
        return pd.DataFrame(columns=COLUMNS)
    reported = at_headline(tidy(metrics), headline_step)
    last = reported.groupby(["teacher", "arm"])["step"].transform("max")
    reported = reported[reported["step"] == last]
    known = [
        metric != CHANCE and is_known(task, metric)
        for task, metric in zip(reported["task"], reported["metric"], strict=True)
    ]
    reported = reported[pd.Series(known, index=reported.index, dtype=bool)]
    rows = []
    for key, own in reported.groupby(["teacher", "arm", "step", "task", "metric"]):
        teacher, arm, step, task, metric = map(str, key)
        values, how = own["value"], quantity(task, metric)
        single = len(own) == 1
        value = float(values.max() if metric.endswith(_P) else values.mean())
        text = p_value(value, value) if metric.endswith(_P) else how.text(value)
        rows.append(
            {
                "macro": macro_name(teacher, arm, task, metric),
                "text": text,
                "unit": how.unit,
                "value": value,
                "low": float(own["low"].iloc[0] if single else values.min()),
                "high": float(own["high"].iloc[0] if single else values.max()),
                "seeds": len(own),
                "teacher": teacher,
                "arm": arm,
                "step": int(step),
                "task": task,
                "metric": metric,
                "meaning": how.name,
            }
        )
    rows += _reductions(reported)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    twice = frame.loc[frame["macro"].duplicated(), "macro"]
    if len(twice):
        raise UserError(
            f"two numbers would be called {twice.iloc[0]}; rename a teacher, an arm, a task or a "
            f"text, so that they differ in more than their signs"
        )
    return frame.sort_values(["teacher", "arm", "task", "metric"], ignore_index=True)


COLUMNS = [
    *("macro", "text", "unit", "value", "low", "high", "seeds"),
    *("teacher", "arm", "step", "task", "metric", "meaning"),
]
"""Of the frame of numbers."""


def _reductions(reported: pd.DataFrame) -> list[dict[str, object]]:
    """Give each model's reduction, where the table has its size."""
    sizes = reported[reported["metric"] == "parameters"]
    rows: list[dict[str, object]] = []
    for (teacher, arm, step), own in sizes.groupby(["teacher", "arm", "step"]):
        values = own["reduction"]
        rows.append(
            {
                "macro": macro_name(str(teacher), str(arm), REDUCTION),
                "text": f"{100 * float(values.mean()):.2f}",
                "unit": "%",
                "value": float(values.mean()),
                "low": float(values.min()) if len(own) > 1 else float("nan"),
                "high": float(values.max()) if len(own) > 1 else float("nan"),
                "seeds": len(own),
                "teacher": teacher,
                "arm": arm,
                "step": step,
                "task": "model",
                "metric": REDUCTION,
                "meaning": "share of the teacher's parameters that is gone",
            }
        )
    return rows


def save_numbers(frame: pd.DataFrame, stem: Path, title: str, root: str = "") -> None:
    r"""Write the numbers as `<stem>.tex` (macros), `.csv` and `.md`.

    Args:
        frame: what `numbers_table` gave.
        stem: path of the files, without suffix.
        title: what the numbers are, in a sentence.
        root: the study's root digest, to be printed as ``\iskdStudyRoot`` where there is one.
    """
    lines = [f"% {title} Made by the workflow; do not edit."]
    if root:
        lines.append(f"\\newcommand{{{ROOT_MACRO}}}{{{root}}} % root digest: `iskd verify --root`")
    rows: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items()} for row in frame.to_dict("records")
    ]
    for row in rows:
        seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"
        unit = f", {row['unit']}" if row["unit"] else ""
        comment = "{teacher}, {arm}, step {step}, {task}: {meaning}".format(**row)
        text = escape_tex(str(row["text"]))
        lines.append(f"\\newcommand{{{row['macro']}}}{{{text}}} % {comment}{unit}; {seeds}")
    stem.with_name(f"{stem.name}.tex").write_bytes(("\n".join(lines) + "\n").encode())
    stem.with_name(f"{stem.name}.csv").write_bytes(csv_text(frame).encode())
    columns = [
        Column("", head, "", [str(v) for v in frame[name]], is_text=name not in ("text", "step"))
        for name, head in (
            ("macro", "Macro"),
            ("text", "Value"),
            ("unit", "Unit"),
            ("teacher", "Teacher"),
            ("arm", "Arm"),
            ("step", "Step"),
            ("task", "Task"),
            ("meaning", "Meaning"),
        )
    ]
    root_lines = [f"Root digest of the study (`{ROOT_MACRO}`): `{root}`", ""] if root else []
    text = "\n".join([title, "", *root_lines, *markdown_rows(columns)]) + "\n"
    stem.with_name(f"{stem.name}.md").write_bytes(text.encode())
