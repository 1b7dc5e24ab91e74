"""Figures of the paper, and their numbers."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType

from iskd.errors import UserError
from iskd.paper.metrics import (
    TEACHER_ARM,
    aggregate,
    check_chance,
    csv_text,
    headline_panels,
    measure,
    tidy,
)
from iskd.paper.style import (
    REFERENCE_COLOUR,
    TEXT_WIDTH,
    ArmStyle,
    arm_styles,
    paper_style,
    task_title,
)

FIGURE_FORMATS = ("pdf", "svg", "png")
CHANCE = "chance"

_ROW_HEIGHT = 1.95  # inches, for one row of panels
_LABEL_HEIGHT = 0.1  # inches, for the shared label below
# What matplotlib would add on its own: times, and its version, which the manifest records.
_METADATA: Mapping[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
_EDGE = 0.4  # points, of the white rim that parts markers lying on one another
_CHANCE_STYLE = ArmStyle("Chance", REFERENCE_COLOUR, "None", (1, 2))


def tradeoff_figure(
    metrics: pd.DataFrame, headline: Mapping[str, str], chance: Mapping[str, float], teacher: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw what a smaller model costs: score against reduction, one panel per task.

    Points are means over seeds. Capped bars span the smallest and the largest seed; where there
    is one seed, bars without caps span one standard error over the task's items. The band around
    the teacher's line is its standard error. An arm whose points all lie at one reduction (tuned
    teacher: one per training budget) gets no line; its points before the last step are pale.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        headline: for each task the metric to show, in the order of the panels. The held-out loss
            comes last, wherever it was measured.
        chance: for some tasks the score of a random choice, a fraction.
        teacher: whose figure to draw.

    Returns:
        The figure, and the numbers in it: columns task, metric, unit, arm, step,
        reduction_percent, score, low, high, spread_of, seeds; the arm `chance` stands for the
        dotted lines.

    Raises:
        UserError: the teacher or a headline metric is not in the table, the teacher was not
            measured itself, the table holds several studies of it, or a chance level is wrong.
    """
    check_chance(chance)
    own = tidy(metrics)
    own = own[own["teacher"] == teacher]
    if own.empty:
        known = ", ".join(sorted(set(metrics["teacher"]))) or "none"
        raise UserError(f"metrics: no rows for the teacher {teacher!r}; there are: {known}")
    if own["study"].nunique() > 1:
        raise UserError(f"metrics: several studies of {teacher!r}; a figure shows one")
    panels = headline_panels(own, headline)
    frame = _plotted_numbers(own, panels, chance)
    styles = arm_styles(arm for arm in frame["arm"].unique() if arm != CHANCE)
    with paper_style():
        figure = _drawn(frame, panels, styles)
    return figure, frame


def save_figure(figure: Figure, frame: pd.DataFrame, stem: Path) -> None:
    """Write the figure as `<stem>.pdf`, `.svg` and `.png` (200 dpi), and its numbers as `.csv`.

    The bytes depend on the figure and the libraries alone: not on the time, the folder, the user's
    settings or the process.
    """
    with paper_style():
        for suffix in FIGURE_FORMATS:
            figure.savefig(_with_suffix(stem, suffix), format=suffix, metadata=_METADATA[suffix])
    _with_suffix(stem, "csv").write_bytes(csv_text(frame).encode())


def _with_suffix(stem: Path, suffix: str) -> Path:
    # Path.with_suffix would cut a stem such as "gpt2-v1.5" at its last point.
    return stem.with_name(f"{stem.name}.{suffix}")


def _plotted_numbers(
    metrics: pd.DataFrame, panels: list[tuple[str, str]], chance: Mapping[str, float]
) -> pd.DataFrame:
    table = aggregate(metrics)
    order = list(arm_styles(table["arm"]))
    parts = []
    for task, metric in panels:
        how = measure(metric)
        rows = table[(table["task"] == task) & (table["metric"] == metric)]
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
        rank = part["arm"].map(order.index)
        parts.append(part.assign(rank=rank).sort_values(["rank", "step"]).drop(columns="rank"))
        if task in chance and how.higher_is_better:
            level: dict[str, str | float] = {"task": task, "metric": metric, "unit": how.unit}
            level |= {"arm": CHANCE, "score": chance[task] * how.factor, "spread_of": ""}
            parts.append(pd.DataFrame([level]).reindex(columns=part.columns).astype(part.dtypes))
    return pd.concat(parts, ignore_index=True)


def _drawn(
    frame: pd.DataFrame, panels: list[tuple[str, str]], styles: Mapping[str, ArmStyle]
) -> Figure:
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    height = rows * _ROW_HEIGHT + _LABEL_HEIGHT
    figure = Figure(figsize=(TEXT_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    reductions = [0.0, *frame["reduction_percent"].dropna()]
    low, high = min(reductions), max(*reductions, 1.0)
    for (task, metric), axes in zip(panels, grid, strict=False):
        part = frame[(frame["task"] == task) & (frame["metric"] == metric)]
        _draw_panel(axes, part, styles)
        how = measure(metric)
        axes.set_title(f"{task_title(task)} {'↑' if how.higher_is_better else '↓'}")
        unit = f" ({how.unit})" if how.unit else ""
        axes.set(xlabel="", ylabel=how.name.capitalize() + unit)
        # Room on the left for markers at reduction 0, which would sit on the axis.
        axes.set_xlim(low - 0.07 * (high - low), high + 0.05 * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    for axes in list(figure.axes)[len(panels) :]:
        axes.remove()
    figure.supxlabel("Reduction of parameters (%)", fontsize="medium")
    shown = dict(styles)
    if CHANCE in set(frame["arm"]):
        shown[CHANCE] = _CHANCE_STYLE
    legend = _draw_legend(figure, frame, shown)
    figure.set_figheight(height + legend.get_window_extent().height / figure.dpi)
    # Each pass of the layout starts from the one before and moves things by a last bit, which
    # shows in the ids of an SVG. One pass, and the bytes no longer depend on earlier drawings.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _draw_panel(axes: Axes, part: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> None:
    for arm, style in ((TEACHER_ARM, styles[TEACHER_ARM]), (CHANCE, _CHANCE_STYLE)):
        numbers = part.loc[part["arm"] == arm, ["score", "low", "high"]].to_numpy(float)
        for score, low, high in numbers:
            axes.axhline(
                score,
                color=style.colour,
                linewidth=0.9,
                linestyle=_line_style(style),
                zorder=1.5,
            )
            if math.isfinite(low):
                axes.axhspan(low, high, color=style.colour, alpha=0.1, linewidth=0)
    arms = part[~part["arm"].isin([TEACHER_ARM, CHANCE])]
    for name, own in arms.groupby("arm", sort=False):
        _draw_arm(axes, own, styles[str(name)])


def _draw_arm(axes: Axes, rows: pd.DataFrame, style: ArmStyle) -> None:
    joined = rows["reduction_percent"].nunique() > 1
    last = rows["step"] == rows["step"].max()
    parts = [(rows, 1.0)] if joined else [(rows[~last], 0.35), (rows[last], 1.0)]
    for part, alpha in parts:
        _draw_bars(axes, part, style.colour, alpha)
        seaborn.lineplot(
            data=part,
            x="reduction_percent",
            y="score",
            # The means are in the frame already; seaborn's own interval is a random bootstrap.
            estimator=None,
            errorbar=None,
            color=style.colour,
            linestyle=_line_style(style) if joined else "none",
            marker=style.marker,
            markersize=style.marker_size,
            markeredgecolor="white",
            markeredgewidth=_EDGE,
            alpha=alpha,
            legend=False,
            ax=axes,
            zorder=3 if joined else 4,
        )


def _draw_bars(axes: Axes, rows: pd.DataFrame, colour: str, alpha: float) -> None:
    for kind, capsize, strength in (("seeds", 2.2, 0.9), ("items", 0.0, 0.45)):
        own = rows[rows["spread_of"] == kind]
        axes.errorbar(
            own["reduction_percent"],
            own["score"],
            yerr=[own["score"] - own["low"], own["high"] - own["score"]],
            fmt="none",
            ecolor=colour,
            elinewidth=0.8,
            capsize=capsize,
            capthick=0.8,
            alpha=alpha * strength,
            zorder=2,
        )


def _line_style(style: ArmStyle) -> LineStyleType:
    return (0, style.dashes) if style.dashes else "solid"


def _draw_legend(figure: Figure, frame: pd.DataFrame, styles: Mapping[str, ArmStyle]) -> Legend:
    spans = frame.groupby("arm")["reduction_percent"].nunique()
    handles = []
    for arm, style in styles.items():
        joined = arm in (TEACHER_ARM, CHANCE) or spans[arm] > 1
        handles.append(
            Line2D(
                [],
                [],
                color=style.colour,
                linestyle=_line_style(style) if joined else "none",
                marker=style.marker,
                markersize=style.marker_size,
                markeredgecolor="white",
                markeredgewidth=_EDGE,
                label=style.label.replace("$", r"\$"),
            )
        )
    # As few rows as fit the width, and those evenly filled.
    for rows in range(1, len(handles) + 1):
        legend = figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=math.ceil(len(handles) / rows),
            handlelength=2.4,
            columnspacing=1.3,
            handletextpad=0.5,
        )
        if legend.get_window_extent().width <= 0.98 * figure.bbox.width or rows == len(handles):
            break
        legend.remove()
    return legend
