"""How many answers changed behind an accuracy that hardly did."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iskd.errors import UserError
from iskd.paper.figures.canvas import (
    MOST_PANELS,
    columns_for,
    draw_bars,
    draw_points,
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

# Percentage points up to which an axis is about linear.
_LINEAR = 2.0
# Ticks by the number of columns.
_TICKS = {1: (1, 2, 5, 10, 20, 50, 100), 2: (2, 5, 10, 20, 50, 100), 3: (2, 10, 50)}
_LEAST = reference_style("As few as the accuracy allows", (1, 2))


def flips_figure(
    metrics: pd.DataFrame, headline: Mapping[str, str], teacher: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw the share of items whose correctness changed against the change of accuracy.

    A model that only loses answers lies on the dotted line: an accuracy cannot change by more than
    the share of items that flip. How far above it a model lies is how much of the teacher's
    behaviour it has exchanged for another (Dutta et al. 2024, arXiv 2407.09141). Both axes are
    linear around 0 and logarithmic far from it (asinh), so that models that have changed little
    are apart where others have lost everything; the dotted line stays straight.

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
            low = min(float(part["change"].min()) * 1.3, -1.0)
            high = max(float(part["change"].max()) * 1.3, 1.0)
            top = max(float(part["high"].max()), float(part["score"].max()), 1.0) * 1.15
            _zoom(axes, "x", (low, high), _TICKS[columns_for(len(parts))])
            _zoom(axes, "y", (0.0, top), _TICKS[1])
        label = "Change of accuracy against the teacher (percentage points)"
        figure.supxlabel(plain(label), fontsize="medium")
        handles = [handle(style, joined=False) for style in styles.values()]
        return finish(figure, [*handles, handle(_LEAST)]), frame


def _zoom(axes: Axes, which: str, ends: tuple[float, float], ticks: Sequence[int]) -> None:
    """Stretch an axis around 0, and write round numbers at it."""
    getattr(axes, f"set_{which}scale")("asinh", linear_width=_LINEAR)
    getattr(axes, f"set_{which}lim")(*ends)
    wanted = (*(-tick for tick in reversed(ticks)), 0, *ticks)
    found = [each for each in wanted if ends[0] <= each <= ends[1]]
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks(found, [f"{each}".replace("-", "\N{MINUS SIGN}") for each in found])
    axis.set_ticks([], minor=True)
