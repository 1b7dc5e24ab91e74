"""Scores and held-out loss against reduction."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from iskd.errors import UserError
from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.figures.canvas import (
    MOST_PANELS,
    PALE,
    columns_for,
    draw_bars,
    draw_level,
    draw_points,
    few_ticks,
    finish,
    handle,
    make_panels,
    plain,
    reference_style,
    set_range,
    set_title,
    teacher_rows,
)
from iskd.paper.measures import measure
from iskd.paper.queries import aggregate, check_chance, headline_panels, rows_of
from iskd.paper.style import (
    REFERENCE_COLOUR,
    ArmStyle,
    arm_styles,
    in_arm_order,
    paper_style,
    task_title,
)

CHANCE = "chance"
CLAIMED = "claimed (paper)"

_CHANCE_STYLE = reference_style("Chance", (1, 2))
_CLAIMED_STYLE = ArmStyle("Claimed (paper)", REFERENCE_COLOUR, "*", marker_size=8)
# From this ratio of the largest to the smallest perplexity on, its axis is logarithmic.
_DECADES = 8


def tradeoff_figure(
    metrics: pd.DataFrame,
    headline: Mapping[str, str],
    chance: Mapping[str, float],
    teacher: str,
    claims: Sequence[Mapping[str, Any]] = (),
) -> tuple[Figure, pd.DataFrame]:
    """Draw what a smaller model costs: score against reduction, one panel per task.

    Points are means over seeds. Capped bars span the smallest and the largest seed; where there
    is one seed, bars without caps are 95 % intervals over the task's items. The band around
    the teacher's line is its 95 % interval. An arm whose points all lie at one reduction (tuned
    teacher: one per training budget) gets no line; its points before the last step are pale.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        headline: for each task the metric to show, in the order of the panels. The held-out loss
            comes last, wherever it was measured; of more tasks than fit, the first are shown.
        chance: for some tasks the score of a random choice, a fraction.
        teacher: whose figure to draw.
        claims: what was published: teacher, task, metric, reduction and retention (fractions).
            Each is drawn at retention times the teacher's score.

    Returns:
        The figure, and the numbers in it: columns task, metric, unit, arm, step,
        reduction_percent, score, low, high, spread_of, seeds; the arm `chance` stands for the
        dotted lines, `claimed (paper)` for the claims.

    Raises:
        UserError: the teacher or a headline metric is not in the table, the teacher was not
            measured itself, the table holds several studies of it, or a chance level is wrong.
    """
    check_chance(chance)
    own = teacher_rows(metrics, teacher)
    panels = headline_panels(own, headline)
    if len(panels) > MOST_PANELS:
        panels = [*panels[: MOST_PANELS - 1], panels[-1]]
    claimed = [claim for claim in claims if claim["teacher"] == teacher]
    frame = _plotted_numbers(own, panels, chance, claimed)
    styles = arm_styles(set(frame["arm"]) - {CHANCE, CLAIMED})
    with paper_style():
        figure = _drawn(frame, panels, styles)
    return figure, frame


def _plotted_numbers(
    metrics: pd.DataFrame,
    panels: list[tuple[str, str]],
    chance: Mapping[str, float],
    claims: Sequence[Mapping[str, Any]],
) -> pd.DataFrame:
    table = aggregate(metrics)
    parts = []
    for task, metric in panels:
        how = measure(metric)
        rows = rows_of(table, task, metric)
        if TEACHER_ARM not in set(rows["arm"]):
            raise UserError(f"metrics: {task}/{metric} was not measured for the teacher itself")
        part = pd.DataFrame(
            {
                "task": task,
                "metric": metric,
                "unit": how.unit,
                "arm": rows["arm"],
                "step": rows["step"].astype("Int64"),
                "reduction_percent": rows["reduction"] * 100,
                "score": rows["value"] * how.factor,
                "low": rows["low"] * how.factor,
                "high": rows["high"] * how.factor,
                "spread_of": rows["spread_of"],
                "seeds": rows["seeds"].astype("Int64"),
            }
        )
        parts.append(in_arm_order(part, "arm", "step"))
        own = float(part.loc[part["arm"] == TEACHER_ARM, "score"].iloc[0])
        levels: list[dict[str, Any]] = [
            {
                "arm": CLAIMED,
                "reduction_percent": claim["reduction"] * 100,
                "score": claim["retention"] * own,
            }
            for claim in claims
            if (claim["task"], claim["metric"]) == (task, metric)
        ]
        if task in chance and how.higher_is_better:
            levels.append({"arm": CHANCE, "score": chance[task] * how.factor})
        same = {"task": task, "metric": metric, "unit": how.unit, "spread_of": ""}
        if levels:
            more = pd.DataFrame([same | level for level in levels])
            parts.append(more.reindex(columns=part.columns).astype(part.dtypes))
    return pd.concat(parts, ignore_index=True)


def _drawn(
    frame: pd.DataFrame, panels: list[tuple[str, str]], styles: Mapping[str, ArmStyle]
) -> Figure:
    figure, grid = make_panels(len(panels))
    reductions = [0.0, *frame["reduction_percent"].dropna()]
    low, high = min(reductions), max(*reductions, 1.0)
    for (task, metric), axes in zip(panels, grid, strict=True):
        part = rows_of(frame, task, metric)
        _draw_panel(axes, part, styles)
        how = measure(metric)
        arrow = "↑" if how.higher_is_better else "↓"
        set_title(axes, f"{task_title(task)} {arrow}", columns_for(len(panels)))
        unit = f" ({how.unit})" if how.unit else ""
        axes.set(xlabel="", ylabel=how.name.capitalize() + unit)
        set_range(axes, low, high)
        few_ticks(axes.xaxis)
        _scale(axes, metric, part["score"])
    figure.supxlabel(plain("Reduction of parameters (%)"), fontsize="medium")
    spans = frame.groupby("arm")["reduction_percent"].nunique()
    handles = [
        handle(style, joined=arm == TEACHER_ARM or spans[arm] > 1) for arm, style in styles.items()
    ]
    if CHANCE in spans:
        handles.append(handle(_CHANCE_STYLE))
    if CLAIMED in spans:
        handles.append(handle(_CLAIMED_STYLE, joined=False, hollow=True))
    return finish(figure, handles)


def _scale(axes: Axes, metric: str, scores: pd.Series) -> None:
    if "perplexity" in metric and scores.max() > _DECADES * scores.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        few_ticks(axes.yaxis)


def _draw_panel(axes: Axes, part: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> None:
    for arm, style in ((TEACHER_ARM, styles[TEACHER_ARM]), (CHANCE, _CHANCE_STYLE)):
        numbers = part.loc[part["arm"] == arm, ["score", "low", "high"]].to_numpy(float)
        for score, low, high in numbers:
            draw_level(axes, score, style, (low, high))
    arms = part[~part["arm"].isin([TEACHER_ARM, CHANCE, CLAIMED])]
    for name, own in arms.groupby("arm", sort=False):
        _draw_arm(axes, own, styles[str(name)])
    claims = part[part["arm"] == CLAIMED]
    if len(claims):
        draw_points(axes, claims, _CLAIMED_STYLE, "reduction_percent", joined=False, hollow=True)


def _draw_arm(axes: Axes, rows: pd.DataFrame, style: ArmStyle) -> None:
    joined = rows["reduction_percent"].nunique() > 1
    last = rows["step"] == rows["step"].max()
    parts = [(rows, 1.0)] if joined else [(rows[~last], PALE), (rows[last], 1.0)]
    for part, alpha in parts:
        draw_bars(axes, part, style.colour, "reduction_percent", alpha=alpha)
        draw_points(axes, part, style, "reduction_percent", joined=joined, alpha=alpha)
