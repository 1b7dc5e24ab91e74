"""The table of differences to the teacher: how large, how sure, and which answers changed."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.columns import Column
from iskd.paper.formats import SHARE, Quantity, fixed, interval, p_value, quantity
from iskd.paper.measures import HELDOUT, measure
from iskd.paper.metrics import tidy
from iskd.paper.queries import MODEL, aggregate, headline_panels, rows_of
from iskd.paper.style import arm_styles, task_title
from iskd.paper.tables import in_order, key_columns

SIGNIFICANCE_NOTE = (
    "Difference: model - teacher on the same items, in percentage points for accuracies. Brackets: "
    "95 % interval of the paired difference, resampled by item, or by the passage that items "
    "share; with several seeds, the mean difference and the smallest and largest seed. p: exact "
    "test of McNemar, two-sided, for each seed; the smallest and the largest where there are "
    "several; not corrected for the number of comparisons. Changed: items whose choice is not the "
    "teacher's. "
    "Flipped: items that the teacher had right and the model has wrong, or the other way round. KL "
    "and agreement: of the next-token predictions with the teacher's."
)
"""What the columns of `significance_table` mean."""

_KL = Quantity("", decimals=3)


def significance_table(metrics: pd.DataFrame, headline: Mapping[str, str]) -> pd.DataFrame:
    """Return how each arm's last step differs from its teacher, one row per task.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        headline: for each task the metric to show, in order; the held-out text comes last, and
            other texts on which the model was compared with the teacher behind it.

    Returns:
        Columns study, teacher, arm, step, seeds, task, metric; teacher_score and score (mean over
        seeds, in the unit of metrics.csv); difference, low, high; p_low and p_high (smallest and
        largest over seeds); changed, flipped, agreement (fractions), kl (nats/token); n (items)
        and clusters (sources they come from). What was not measured is missing.

    Raises:
        UserError: as `iskd.paper.queries.headline_panels`.
    """
    checked = tidy(metrics)
    table = aggregate(checked)
    last = table.groupby(MODEL[:3])["step"].transform("max")
    table = table[table["step"] == last]
    panels = headline_panels(checked, headline)
    compared = sorted(set(table.loc[table["metric"] == "kl", "task"]) - {HELDOUT[0]})
    panels += [(text, HELDOUT[1]) for text in compared]
    parts = [_rows(checked, table, *panel) for panel in panels]
    frame = in_order(pd.concat(parts, ignore_index=True))
    whole = dict.fromkeys(("step", "seeds", "n", "clusters"), "Int64")
    return frame.astype(whole)


def _rows(checked: pd.DataFrame, table: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Give one task's rows, all arms but the teacher."""
    scores = rows_of(table, task, metric)
    own = scores[scores["arm"] == TEACHER_ARM].set_index(["study", "teacher"])["value"]
    frame = scores.loc[scores["arm"] != TEACHER_ARM, [*MODEL, "seeds", "value"]]
    frame = frame.rename(columns={"value": "score"})
    frame = frame.assign(task=task, metric=metric)
    owners = zip(frame["study"], frame["teacher"], strict=True)
    frame["teacher_score"] = [own.get(owner, float("nan")) for owner in owners]

    def add(name: str, suffix: str, columns: Mapping[str, str]) -> None:
        nonlocal frame
        rows = rows_of(table, task, name if not suffix else f"{metric}_{suffix}")
        rows = rows[[*MODEL, *columns]].rename(columns=dict(columns))
        frame = frame.merge(rows, on=MODEL, how="left")

    add("", "difference", {"value": "difference", "low": "low", "high": "high"})
    # Where nothing was paired by item, as for a text, the difference still stands.
    frame["difference"] = frame["difference"].fillna(frame["score"] - frame["teacher_score"])
    p_values = rows_of(checked, task, f"{metric}_mcnemar").groupby(MODEL)["value"]
    ends = p_values.agg(p_low="min", p_high="max").reset_index()
    frame = frame.merge(ends, on=MODEL, how="left")
    add("", "changed", {"value": "changed"})
    add("", "flipped", {"value": "flipped"})
    add("kl", "", {"value": "kl"})
    add("agreement", "", {"value": "agreement"})
    counts = rows_of(checked, task, metric).groupby(MODEL)[["n", "clusters"]].max()
    frame = frame.merge(counts.reset_index(), on=MODEL, how="left")
    order = ["task", "metric", "teacher_score", "score", "difference", "low", "high"]
    order += ["p_low", "p_high", "changed", "flipped", "kl", "agreement", "n", "clusters"]
    return frame[[*MODEL, "seeds", *order]]


def significance_columns(frame: pd.DataFrame) -> list[Column]:
    """Give the columns of `significance_table` for readers."""
    keys = [column for column in key_columns(frame) if column.head != "Step"]
    styles = arm_styles(frame["arm"])
    rows: list[dict[str, Any]] = [
        {str(k): v for k, v in r.items()} for r in frame.to_dict("records")
    ]
    how = [quantity(row["task"], row["metric"]) for row in rows]
    units = [f" {q.unit}" if q.unit else "" for q in how]
    tasks = [f"{task_title(r['task'])}, {measure(r['metric']).short}" for r in rows]
    # Every task has a unit of its own, so that it stands with the score and not in the head.
    pairs = list(zip(rows, how, units, strict=True))
    arms = [styles[row["arm"]].label for row in rows]
    names = [arm if i == 0 or arm != arms[i - 1] else "" for i, arm in enumerate(arms)]
    keys = [
        Column("", c.head, "", names, is_text=True, is_key=True) if c.head == "Arm" else c
        for c in keys
    ]
    return [
        *keys,
        Column("", "Task", "", tasks, is_text=True, is_key=True),
        Column("", "Teacher", "", [q.text(r["teacher_score"]) for r, q, _ in pairs]),
        Column("", "Model", "", [q.text(r["score"]) + unit for r, q, unit in pairs]),
        Column("", "Difference", "", [_difference(r, q) for r, q, _ in pairs]),
        Column("", "p", "", [p_value(r["p_low"], r["p_high"]) for r in rows]),
        Column("", "Changed", "%", [SHARE.text(r["changed"]) for r in rows]),
        Column("", "Flipped", "%", [SHARE.text(r["flipped"]) for r in rows]),
        Column("", "KL", "", [_KL.text(r["kl"]) for r in rows]),
        Column("", "Agreement", "%", [SHARE.text(r["agreement"]) for r in rows]),
        Column("", "Items", "", [fixed(r["n"], 0) for r in rows]),
        Column("", "Sources", "", [fixed(r["clusters"], 0) for r in rows]),
    ]


def _difference(row: Mapping[str, Any], how: Quantity) -> str:
    text = how.text(row["difference"])
    return text if pd.isna(row["low"]) else f"{text} {interval(row['low'], row['high'], how)}"
