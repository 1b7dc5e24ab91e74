"""What a low loss costs: parameters, speed, memory; and who is better in both."""

import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iskd.errors import UserError
from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.figures.canvas import (
    PALE,
    TEACHER_MARKER,
    columns_for,
    draw_bars,
    draw_points,
    finish,
    handle,
    interval_of,
    make_panels,
    reference_style,
    set_title,
    teacher_rows,
)
from iskd.paper.figures.scales import set_values
from iskd.paper.measures import HELDOUT
from iskd.paper.queries import aggregate
from iskd.paper.style import REFERENCE_COLOUR, ArmStyle, arm_styles, in_arm_order, paper_style

PARAMETERS, DECODE, MEMORY = "parameters", "decode", "memory"
_AXES = {
    PARAMETERS: ("Parameters", "Parameters (millions)\n← fewer", 1e-6, False),
    DECODE: ("Decoding speed", "Batch {batch} (tokens/s)\n← faster", 1.0, True),
    MEMORY: ("Memory", "Peak, batch {batch} (MB)\n← less", 1e-6, False),
}
_FRONT = reference_style("Front: no model beats these in both", ())
_BEATEN = ArmStyle("Pale: another one is better in both", "#b0b0b0", "o")


def pareto_figure(
    metrics: pd.DataFrame, measurements: pd.DataFrame | None, teacher: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw held-out loss against parameters, measured decoding speed and measured peak memory.

    Speed and memory are those at the smallest batch that was measured. Models that another one
    beats in both respects are pale; the others are joined by the front. The teacher competes too.
    The axis of losses is broken where a few of them lie far from the others.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        measurements: the same of measurements.csv; None or empty, there is one panel.
        teacher: whose figure to draw.

    Returns:
        The figure, and the numbers in it: columns axis, arm, step, x, x_low, x_high, score (nats
        per token), low, high, spread_of, on_front.

    Raises:
        UserError: the teacher is not in the table, or no loss of it was measured.
    """
    table = aggregate(teacher_rows(metrics, teacher))
    losses = table[(table["task"] == HELDOUT[0]) & (table["metric"] == HELDOUT[1])]
    if TEACHER_ARM not in set(losses["arm"]):
        raise UserError("metrics: the held-out loss was not measured for the teacher itself")
    names = ["arm", "step"]
    losses = losses[[*names, "value", "low", "high", "spread_of"]]
    losses = losses.rename(columns={"value": "score"})
    batch, sources = 1, {PARAMETERS: table[table["metric"] == "parameters"]}
    if measurements is not None and (measurements["teacher"] == teacher).any():
        measured = aggregate(measurements[measurements["teacher"] == teacher])
        batch = min(_sizes(measured["metric"]), default=1)
        for kind in (DECODE, MEMORY):
            sources[kind] = measured[measured["metric"] == f"{kind}_b{batch}"]
    parts = []
    for kind, rows in sources.items():
        if rows.empty:
            continue
        *_, factor, more = _AXES[kind]
        own = rows[[*names, "value", "low", "high"]].rename(
            columns={"value": "x", "low": "x_low", "high": "x_high"}
        )
        own[["x", "x_low", "x_high"]] *= factor
        part = losses.merge(own, on=names).assign(axis=kind)
        part["on_front"] = _front(part["x"] * (-1 if more else 1), part["score"])
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    styles = arm_styles(frame["arm"])
    if TEACHER_ARM in styles:
        styles[TEACHER_ARM] = ArmStyle("Teacher", REFERENCE_COLOUR, TEACHER_MARKER)
    frame = frame.assign(place=frame["axis"].map(list(_AXES).index))
    frame = in_arm_order(frame, "place", "arm", "step")
    columns = ["axis", "arm", "step", "x", "x_low", "x_high", "score", "low", "high"]
    frame = frame[[*columns, "spread_of", "on_front"]].astype({"step": "Int64"})
    with paper_style():
        kinds = list(dict.fromkeys(frame["axis"]))
        figure, grid = make_panels(len(kinds))
        for kind, axes in zip(kinds, grid, strict=True):
            title, label, _, more = _AXES[kind]
            set_title(axes, title, columns_for(len(kinds)))
            _draw(axes, frame[frame["axis"] == kind], styles)
            axes.set(xlabel=label.format(batch=batch), ylabel="Held-out loss (nats/token)")
            own = frame.loc[frame["axis"] == kind, "x"]
            set_values(axes, "x", [(x, x) for x in own])
            # The same for all panels, whichever models were measured.
            set_values(axes, "y", interval_of(frame), broken=True)
            if more:
                # Better is to the left in every panel.
                axes.invert_xaxis()
        handles = [
            handle(style, joined=False, hollow=arm == TEACHER_ARM) for arm, style in styles.items()
        ]
        if not frame["on_front"].all():
            handles.append(handle(_BEATEN, joined=False))
        if frame.groupby("axis")["on_front"].sum().max() > 1:
            handles.append(handle(_FRONT))
        return finish(figure, handles), frame


def _sizes(metrics: Sequence[str] | pd.Series) -> list[int]:
    found = (re.fullmatch(r"decode_b(\d+)", str(metric)) for metric in metrics)
    return [int(match[1]) for match in found if match]


def _front(costs: pd.Series, losses: pd.Series) -> list[bool]:
    """Tell which points no other one beats: at most as much of both, and less of one."""
    points = list(zip(costs, losses, strict=True))
    return [
        not any(
            cost <= own and loss <= mine and (cost, loss) != (own, mine) for cost, loss in points
        )
        for own, mine in points
    ]


def _draw(axes: Axes, part: pd.DataFrame, styles: dict[str, ArmStyle]) -> None:
    front = part[part["on_front"]].sort_values(["x", "score"])
    axes.plot(
        front["x"], front["score"], color=REFERENCE_COLOUR, linewidth=0.7, alpha=0.6, zorder=1
    )
    for arm, style in styles.items():
        own = part[part["arm"] == arm]
        for rows, alpha in ((own[~own["on_front"]], PALE), (own[own["on_front"]], 1.0)):
            if len(rows):
                draw_bars(axes, rows, style.colour, "x", alpha=alpha)
                draw_points(
                    axes,
                    rows,
                    style,
                    "x",
                    joined=False,
                    alpha=alpha,
                    hollow=arm == TEACHER_ARM,
                )
