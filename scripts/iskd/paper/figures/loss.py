"""Loss on held-out text, and on texts of another kind, by step."""

import pandas as pd
from matplotlib.figure import Figure

from iskd.errors import UserError
from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.figures.canvas import (
    columns_for,
    draw_bars,
    draw_level,
    draw_points,
    finish,
    handle,
    interval_of,
    make_panels,
    plain,
    set_title,
    teacher_rows,
    whole_ticks,
)
from iskd.paper.figures.scales import set_values
from iskd.paper.measures import HELDOUT
from iskd.paper.queries import aggregate, rows_of
from iskd.paper.style import arm_styles, in_arm_order, paper_style, task_title

# How far markers of one step are moved apart, as a share of the panel's width, by its columns.
_DODGE = {1: 0.035, 2: 0.035, 3: 0.055}


# How far from its step a marker may stand, in steps.
_REACH = 0.42


def loss_figure(metrics: pd.DataFrame, teacher: str) -> tuple[Figure, pd.DataFrame]:
    """Draw the loss of one teacher's arms against the number of replaced blocks.

    One panel per text: what is lost on the corpus's own kind, and what on others (forgetting).
    Points are means over seeds, bars as in `iskd.paper.figures.tradeoff`. Baselines stand at the
    step that they were made for, side by side where there are several. The axis of losses is
    broken where a few of them lie far from the others.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        teacher: whose figure to draw.

    Returns:
        The figure, and the numbers in it: columns text, arm, step, score (nats/token), low, high,
        spread_of, seeds.

    Raises:
        UserError: the teacher is not in the table, or no loss of it was measured.
    """
    table = aggregate(teacher_rows(metrics, teacher))
    table = table[table["metric"] == HELDOUT[1]]
    if TEACHER_ARM not in set(table.loc[table["task"] == HELDOUT[0], "arm"]):
        raise UserError("metrics: the held-out loss was not measured for the teacher itself")
    texts = [HELDOUT[0], *sorted(set(table["task"]) - {HELDOUT[0]})]
    styles = arm_styles(table["arm"])
    frame = table.assign(
        text=table["task"],
        score=table["value"],
        step=table["step"].astype("Int64"),
        seeds=table["seeds"].astype("Int64"),
        place=table["task"].map(texts.index),
    )
    frame = in_arm_order(frame, "place", "arm", "step")
    frame = frame[["text", "arm", "step", "score", "low", "high", "spread_of", "seeds"]]
    most = max(float(frame["step"].max()), 1.0)
    with paper_style():
        figure, grid = make_panels(len(texts))
        for text, axes in zip(texts, grid, strict=True):
            part = frame[frame["text"] == text]
            aside = _side_by_side(part, _DODGE[columns_for(len(texts))] * (most + 0.8))
            for arm, style in styles.items():
                own = part[part["arm"] == arm]
                if arm == TEACHER_ARM:
                    for score, low, high in own[["score", "low", "high"]].to_numpy(float):
                        draw_level(axes, score, style, (low, high))
                elif len(own):
                    own = own.astype({"step": float})
                    own["step"] += aside.get(arm, 0.0)
                    draw_bars(axes, own, style.colour, "step")
                    draw_points(axes, own, style, "step", joined=len(own) > 1)
            set_title(axes, f"{task_title(text)} ↓", columns_for(len(texts)))
            axes.set(xlabel="", ylabel="Loss (nats/token)")
            axes.set_xlim(-0.4, most + 0.4)
            whole_ticks(axes.xaxis)
            set_values(axes, "y", interval_of(part), broken=True)
        figure.supxlabel(plain("Replaced blocks (step)"), fontsize="medium")
        counts = rows_of(table, *HELDOUT).groupby("arm")["step"].nunique()
        handles = [
            handle(style, joined=arm == TEACHER_ARM or counts.get(arm, 1) > 1)
            for arm, style in styles.items()
        ]
        return finish(figure, handles), frame


def _side_by_side(part: pd.DataFrame, width: float) -> dict[str, float]:
    """Say how far to move the markers of arms with one point, so that none hides another.

    Arms with a line keep their place, and so does an arm that is alone at its step.
    """
    counts = part[part["arm"] != TEACHER_ARM].groupby("arm", sort=False)["step"]
    single = {str(arm): int(steps.iloc[0]) for arm, steps in counts if len(steps) == 1}
    joined = {int(step) for _, steps in counts if len(steps) > 1 for step in steps}
    moved: dict[str, float] = {}
    for step in set(single.values()):
        arms = [arm for arm, own in single.items() if own == step]
        if step in joined:
            # Right and left of the line's marker in turn.
            places = [(i // 2 + 1.0) * (1 if i % 2 else -1) for i in range(len(arms))]
        else:
            places = [i - (len(arms) - 1) / 2 for i in range(len(arms))]
        # None comes near to the next step's markers.
        apart = min(width, _REACH / max(1.0, *map(abs, places)))
        moved |= {arm: place * apart for arm, place in zip(arms, places, strict=True)}
    return moved
