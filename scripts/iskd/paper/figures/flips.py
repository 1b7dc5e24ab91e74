"""How many answers changed behind an accuracy that hardly did."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from iskd.errors import UserError
from iskd.paper.figures.canvas import (
    MOST_PANELS,
    columns_for,
    draw_bars,
    draw_points,
    few_ticks,
    finish,
    handle,
    make_panels,
    plain,
    reference_style,
    set_title,
    teacher_rows,
)
from iskd.paper.queries import aggregate, rows_of
from iskd.paper.style import arm_styles, in_arm_order, paper_style, task_title

_LEAST = reference_style("As few as the accuracy allows", (1, 2))


def flips_figure(
    metrics: pd.DataFrame, headline: Mapping[str, str], teacher: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw the share of items whose correctness changed against the change of accuracy.

    A model that only loses answers lies on the dotted line: an accuracy cannot change by more than
    the share of items that flip. How far above it a model lies is how much of the teacher's
    behaviour it has exchanged for another (Dutta et al. 2024, arXiv 2407.09141).

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        headline: for each task the metric to show; tasks that are no accuracy are left out.
        teacher: whose figure to draw.

    Returns:
        The figure, and the numbers in it: columns task, metric, arm, step, change (percentage
        points), change_low, change_high, score (share of items that flipped, %), low, high,
        spread_of.

    Raises:
        UserError: the teacher is not in the table, or no flips were measured.
    """
    table = aggregate(teacher_rows(metrics, teacher))
    parts, names = [], ["arm", "step"]
    for task, metric in headline.items():
        flips = rows_of(table, task, f"{metric}_flipped")
        change = rows_of(table, task, f"{metric}_difference")
        if flips.empty or change.empty:
            continue
        flips = flips[[*names, "value", "low", "high", "spread_of"]]
        change = change[[*names, "value", "low", "high"]].rename(
            columns={"value": "change", "low": "change_low", "high": "change_high"}
        )
        part = flips.rename(columns={"value": "score"}).merge(change, on=names)
        numbers = ["score", "low", "high", "change", "change_low", "change_high"]
        part[numbers] *= 100
        parts.append(part.assign(task=task, metric=metric))
    if not parts:
        raise UserError("metrics: no task of the headline tells which answers flipped")
    parts = parts[:MOST_PANELS]
    frame = pd.concat(parts, ignore_index=True)
    styles = arm_styles(frame["arm"])
    frame = pd.concat([in_arm_order(part, "arm", "step") for part in parts], ignore_index=True)
    columns = ["task", "metric", "arm", "step", "change", "change_low", "change_high"]
    frame = frame[[*columns, "score", "low", "high", "spread_of"]].astype({"step": "Int64"})
    with paper_style():
        figure, grid = make_panels(len(parts))
        for (name, part), axes in zip(frame.groupby("task", sort=False), grid, strict=True):
            reach = max(1.0, float(part["change"].abs().max()), float(part["score"].max()))
            # An accuracy cannot change by more than the flips.
            axes.plot(
                [-reach, 0, reach],
                [reach, 0, reach],
                color=_LEAST.colour,
                linestyle=(0, _LEAST.dashes),
                linewidth=0.9,
                zorder=1,
            )
            for arm, style in styles.items():
                own = part[part["arm"] == arm]
                if len(own):
                    draw_bars(axes, own, style.colour, "change")
                    draw_points(axes, own, style, "change", joined=False)
            set_title(axes, task_title(str(name)), columns_for(len(parts)))
            axes.set(xlabel="", ylabel="Flipped items (%)")
            low = min(float(part["change"].min()), 0.0)
            high = max(float(part["change"].max()), 0.0)
            room = 0.12 * max(high - low, 2.0)
            axes.set_xlim(low - room, high + room)
            axes.set_ylim(0, max(float(part["high"].max()), float(part["score"].max())) * 1.08 + 1)
            few_ticks(axes.xaxis)
            few_ticks(axes.yaxis)
        label = "Change of accuracy against the teacher (percentage points)"
        figure.supxlabel(plain(label), fontsize="medium")
        handles = [handle(style, joined=False) for style in styles.values()]
        return finish(figure, [*handles, handle(_LEAST)]), frame
