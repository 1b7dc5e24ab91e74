"""Which block was replaced when, and what each replacement cost."""

import pandas as pd
from matplotlib.figure import Figure

from iskd.errors import UserError
from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.figures.canvas import (
    MOST_PANELS,
    columns_for,
    few_ticks,
    finish,
    handle,
    make_panels,
    plain,
    set_title,
    teacher_rows,
    whole_ticks,
)
from iskd.paper.measures import HELDOUT
from iskd.paper.style import arm_styles, in_arm_order, paper_style

_PANEL_ROOM = 0.16


def order_figure(metrics: pd.DataFrame, teacher: str) -> tuple[Figure, pd.DataFrame]:
    """Draw the loss that each step added, and the number of the block that went in it.

    One panel per arm that replaces block after block. Bars are means over seeds; with several
    seeds a line spans the smallest and the largest. Blocks are counted from 0; where seeds replaced
    different blocks in a step, all of them are named.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        teacher: whose figure to draw.

    Returns:
        The figure, and the numbers in it: columns arm, step, blocks (one or several, joined by
        "/"), score (nats/token that the step added), low, high, seeds.

    Raises:
        UserError: the teacher is not in the table, or none of its arms has replaced blocks.
    """
    own = teacher_rows(metrics, teacher)
    losses = own[(own["task"] == HELDOUT[0]) & (own["metric"] == HELDOUT[1])]
    blocks = own[own["metric"] == "replaced_block"]
    if blocks.empty:
        raise UserError("metrics: no arm of this teacher has replaced block after block")
    start = losses.loc[losses["arm"] == TEACHER_ARM, "value"]
    if start.empty:
        raise UserError("metrics: the held-out loss was not measured for the teacher itself")
    keys = ["arm", "seed", "step"]
    chains = blocks[[*keys, "value"]].rename(columns={"value": "block"})
    chains = chains.merge(losses[[*keys, "value"]], on=keys).sort_values(keys)
    before = chains.groupby(["arm", "seed"])["value"].shift(1)
    previous = chains.groupby(["arm", "seed"])["step"].shift(1).fillna(0)
    chains["added"] = chains["value"] - before.fillna(float(start.iloc[0]))
    # Where only some steps were evaluated, what was added between them is no one step's.
    chains = chains[chains["step"] - previous == 1]
    if chains.empty:
        raise UserError("metrics: no two neighbouring steps of this teacher were evaluated")
    frame = (
        chains.groupby(["arm", "step"])
        .agg(
            blocks=("block", lambda found: "/".join(f"{b:.0f}" for b in dict.fromkeys(found))),
            score=("added", "mean"),
            low=("added", "min"),
            high=("added", "max"),
            seeds=("added", "size"),
        )
        .reset_index()
    )
    styles = arm_styles(frame["arm"])
    arms = list(styles)[:MOST_PANELS]
    frame = in_arm_order(frame[frame["arm"].isin(arms)], "arm", "step")
    low, high = min(float(frame["low"].min()), 0.0), max(float(frame["high"].max()), 0.0)
    room = _PANEL_ROOM * (high - low or 1.0)
    with paper_style():
        figure, grid = make_panels(len(arms), sharey=True)
        for arm, axes in zip(arms, grid, strict=True):
            part, style = frame[frame["arm"] == arm], styles[arm]
            steps = part["step"].astype(float)
            axes.bar(steps, part["score"], width=0.62, color=style.colour, alpha=0.75, zorder=2)
            if (part["seeds"] > 1).any():
                axes.vlines(
                    steps, part["low"], part["high"], color="#202020", linewidth=0.9, zorder=3
                )
            for step, name, top in zip(steps, part["blocks"], part["high"], strict=True):
                axes.annotate(
                    name,
                    (step, max(float(top), 0.0)),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=7,
                )
            set_title(axes, style.label, columns_for(len(arms)))
            axes.set(xlabel="", ylabel="Added loss (nats/token)")
            axes.set_xlim(0.3, float(frame["step"].max()) + 0.7)
            axes.set_ylim(low - room * (low < 0), high + room)
            whole_ticks(axes.xaxis)
            few_ticks(axes.yaxis)
        figure.supxlabel(plain("Step (number above a bar: the block replaced)"), fontsize="medium")
        return finish(figure, [handle(styles[arm], joined=False) for arm in arms]), frame
