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
from iskd.paper.queries import aggregate, rows_of
from iskd.paper.style import arm_styles, in_arm_order, paper_style, task_title


def loss_figure(metrics: pd.DataFrame, teacher: str) -> tuple[Figure, pd.DataFrame]:
    """Draw the loss of one teacher's arms against the number of replaced blocks.

    One panel per text: what is lost on the corpus's own kind, and what on others (forgetting).
    Points are means over seeds, bars as in `iskd.paper.figures.tradeoff`. Baselines stand at the
    step that they were made for.

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
    with paper_style():
        figure, grid = make_panels(len(texts))
        for text, axes in zip(texts, grid, strict=True):
            part = frame[frame["text"] == text]
            for arm, style in styles.items():
                own = part[part["arm"] == arm]
                if arm == TEACHER_ARM:
                    for score, low, high in own[["score", "low", "high"]].to_numpy(float):
                        draw_level(axes, score, style, (low, high))
                elif len(own):
                    own = own.astype({"step": float})
                    draw_bars(axes, own, style.colour, "step")
                    draw_points(axes, own, style, "step", joined=len(own) > 1)
            set_title(axes, f"{task_title(text)} ↓", columns_for(len(texts)))
            axes.set(xlabel="", ylabel="Loss (nats/token)")
            axes.set_xlim(-0.3, max(float(frame["step"].max()), 1.0) + 0.3)
            whole_ticks(axes.xaxis)
            few_ticks(axes.yaxis)
        figure.supxlabel(plain("Replaced blocks (step)"), fontsize="medium")
        counts = rows_of(table, *HELDOUT).groupby("arm")["step"].nunique()
        handles = [
            handle(style, joined=arm == TEACHER_ARM or counts.get(arm, 1) > 1)
            for arm, style in styles.items()
        ]
        return finish(figure, handles), frame
