"""The tables of a model card: a line for each task and text, size and speed beside the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.columns import Column
from iskd.paper.formats import MISSING, is_known, p_value, quantity, with_interval
from iskd.paper.layout import markdown_rows
from iskd.paper.style import task_title

_TEXT_METRIC = "loss"
_FACTS = (("model", "parameters"), ("model", "checkpoint_bytes"), ("model", "flops_per_token"))
_RATIO = "_ratio"


def rows_of(metrics: pd.DataFrame, model: Mapping[str, Any]) -> pd.DataFrame:
    """Give the rows of one model.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        model: teacher, arm, seed (or None) and step.
    """
    seeds = metrics["seed"].isna() if model["seed"] is None else metrics["seed"] == model["seed"]
    same = (metrics["teacher"] == model["teacher"]) & (metrics["arm"] == model["arm"])
    return metrics[same & (metrics["step"] == model["step"]) & seeds.fillna(value=False)]


def score_table(
    metrics: pd.DataFrame,
    model: Mapping[str, Any],
    headline: Mapping[str, str],
    tasks: Sequence[str],
    texts: Sequence[str],
) -> list[str]:
    """Write a line for each task, by the metric that is quoted, and for each text.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        model: as in :func:`rows_of`.
        headline: for each task the metric to quote.
        tasks: the study's tasks in its order.
        texts: the texts that the loss is measured on, in the study's order.

    Returns:
        the lines of a Markdown table
    """
    own, teacher = _found(metrics, model), _found(metrics, _teacher(model))
    lines = []
    for task, metric in [*((t, headline[t]) for t in tasks), *((t, _TEXT_METRIC) for t in texts)]:
        if (task, metric) not in own:
            continue
        how = quantity(task, metric)
        row = own[task, metric]
        lines.append(
            (
                task_title(task),
                f"{how.name}, {how.unit}" if how.unit else how.name,
                _number(task, metric, row),
                _number(task, metric, teacher.get((task, metric))),
                _number(task, f"{metric}_difference", own.get((task, f"{metric}_difference"))),
                _p_value(own.get((task, f"{metric}_mcnemar"))),
                _number(task, f"{metric}_changed", own.get((task, f"{metric}_changed"))),
                "" if pd.isna(row["n"]) else str(int(row["n"])),
            )
        )
    heads = (
        *("Task", "Measure", "This model", "Teacher", "Difference"),
        *("p (McNemar)", "Answers changed (%)", "Items"),
    )
    return _table(heads, lines)


def size_table(
    metrics: pd.DataFrame, measurements: pd.DataFrame, model: Mapping[str, Any]
) -> list[str]:
    """Write a line for each size and speed: this model, its teacher, and the ratio.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        measurements: the same of measurements.csv; may be empty.
        model: as in :func:`rows_of`.

    Returns:
        the lines of a Markdown table
    """
    both = pd.concat([metrics, measurements])
    own, teacher = _found(both, model), _found(both, _teacher(model))
    speeds = [
        (task, metric)
        for task, metric in own
        if task == "efficiency" or f"{metric}{_RATIO}" in {name for _, name in own}
    ]
    lines = []
    for task, metric in [*_FACTS, *speeds]:
        if (task, metric) not in own or not is_known(task, metric) or metric.endswith(_RATIO):
            continue
        how = quantity(task, metric)
        theirs = teacher.get((task, metric))
        ratio = own.get((task, f"{metric}{_RATIO}"))
        if ratio is not None:
            shown = _number(task, f"{metric}{_RATIO}", ratio)
        elif theirs is not None and theirs["value"]:
            shown = f"{own[task, metric]['value'] / theirs['value']:.2f}"
        else:
            shown = MISSING
        lines.append(
            (
                f"{how.name} ({how.unit})" if how.unit else how.name,
                _number(task, metric, own[task, metric]),
                _number(task, metric, theirs),
                shown,
            )
        )
    return _table(("What", "This model", "Teacher", "Ratio"), lines, texts=1)


def _teacher(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"teacher": model["teacher"], "arm": TEACHER_ARM, "seed": None, "step": 0}


def _found(
    metrics: pd.DataFrame, model: Mapping[str, Any]
) -> dict[tuple[str, str], dict[str, Any]]:
    records = rows_of(metrics, model).to_dict("records")
    return {
        (str(row["task"]), str(row["metric"])): {str(key): value for key, value in row.items()}
        for row in records
    }


def _number(task: str, metric: str, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return MISSING
    return with_interval(row["value"], row["low"], row["high"], quantity(task, metric))


def _p_value(row: Mapping[str, Any] | None) -> str:
    return MISSING if row is None else p_value(row["value"], row["value"])


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], texts: int = 2) -> list[str]:
    columns = [
        Column("", head, "", [line[i] for line in lines], is_text=i < texts)
        for i, head in enumerate(heads)
    ]
    return markdown_rows(columns)
