"""What each step changed, and what that cost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iskd.errors import UserError
from iskd.evaluation.results import TEACHER_ARM
from iskd.paper.figures.canvas import (
    MOST_PANELS,
    ROW_HEIGHT,
    columns_for,
    few_ticks,
    finish,
    make_panels,
    plain,
    set_title,
    teacher_rows,
)
from iskd.paper.formats import fixed
from iskd.paper.measures import HELDOUT
from iskd.paper.style import ArmStyle, arm_styles, in_arm_order, paper_style

Changes = Mapping[tuple[str, int, int], str]
"""What was changed, in words, by arm, seed and step."""
# Inches of a bar, and of what stands above and below all of them.
_BAR, _REST = 0.15, 0.75
# Letters beside a bar, by the number of columns.
_LETTERS = {1: 22, 2: 24, 3: 14}
# Room for the numbers at the bars' ends, as a share of the bars' range, likewise.
_NUMBERS = {1: 0.28, 2: 0.3, 3: 0.6}


def read_changes(
    files: Sequence[str], about: Sequence[Mapping[str, Any]], teacher: str
) -> dict[tuple[str, int, int], str]:
    """Read what each step of one teacher's arms has changed.

    Args:
        files: paths of ``substitution.json``.
        about: in the same order, which model each is about (teacher, arm, seed, step).
        teacher: whose arms.

    Returns:
        "block 3" where a whole block was replaced; of recipe parts "heads of 3; mlp of 0, 5": what
        of which blocks became smaller, or "nothing" where a step found its budget met
    """
    found = {}
    for model, path in zip(about, files, strict=True):
        if model["teacher"] == teacher:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
            key = (model["arm"], model["seed"], model["step"])
            found[key] = in_words(told.get("changes"), told["block"])
    return found


def in_words(changes: Sequence[Mapping[str, Any]] | None, block: int | None) -> str:
    """Say what one step has changed; see :func:`read_changes`."""
    if changes is None:
        return f"block {block}"
    kinds: dict[str, set[int]] = {}
    for change in changes:
        kinds.setdefault(str(change["kind"]), set()).add(int(change["block"]))
    parts = [
        f"{'all' if kind == 'block' else kind} of {', '.join(map(str, sorted(blocks)))}"
        for kind, blocks in sorted(kinds.items())
    ]
    return "; ".join(parts) or "nothing"


def order_figure(
    metrics: pd.DataFrame, teacher: str, changes: Changes | None = None
) -> tuple[Figure, pd.DataFrame]:
    """Draw the loss that each step added, beside what the step changed.

    One panel per arm that replaces block after block, its first step on top. Bars are means over
    seeds, with their value at their end; with several seeds a line spans the smallest and the
    largest. Blocks are counted from 0; where seeds changed different ones in a step, all are named.

    Args:
        metrics: a frame of `iskd.paper.metrics.read_metrics`.
        teacher: whose figure to draw.
        changes: what each step changed; left out, the block that metrics name.

    Returns:
        The figure, and the numbers in it: columns arm, step, blocks (one or several, joined by
        "/"), changed (in words, likewise), score (nats/token that the step added), low, high,
        seeds.

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
    told = changes or {}
    chains["changed"] = [
        told.get((str(arm), int(seed), int(step)), f"block {block:.0f}")
        for arm, seed, step, block in chains[[*keys, "block"]].itertuples(index=False)
    ]
    frame = (
        chains.groupby(["arm", "step"])
        .agg(
            blocks=("block", lambda found: "/".join(f"{b:.0f}" for b in dict.fromkeys(found))),
            changed=("changed", lambda found: " / ".join(dict.fromkeys(found))),
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
    steps = int(frame.groupby("arm")["step"].nunique().max())
    with paper_style():
        height = max(ROW_HEIGHT, _REST + _BAR * steps)
        figure, grid = make_panels(len(arms), row_height=height, sharex=True)
        for arm, axes in zip(arms, grid, strict=True):
            part = frame[frame["arm"] == arm].reset_index(drop=True)
            set_title(axes, styles[arm].label, columns_for(len(arms)))
            _draw(axes, part, styles[arm], _LETTERS[columns_for(len(arms))])
        low, high = min(float(frame["low"].min()), 0.0), max(float(frame["high"].max()), 0.0)
        room = _NUMBERS[columns_for(len(arms))] * (high - low or 1.0)
        grid[0].set_xlim(low - room * (low < 0), high + room)
        few_ticks(grid[0].xaxis)
        figure.supxlabel(plain("Loss that the step added (nats/token)"), fontsize="medium")
        return finish(figure, []), frame


def _draw(axes: Axes, part: pd.DataFrame, style: ArmStyle, letters: int) -> None:
    """Draw one arm's bars, its first step on top, with what was changed beside them."""
    places = range(len(part))
    axes.barh(places, part["score"], height=0.62, color=style.colour, alpha=0.75, zorder=2)
    if (part["seeds"] > 1).any():
        axes.hlines(places, part["low"], part["high"], color="#202020", linewidth=0.9, zorder=3)
    columns = (part[name].astype(float) for name in ("score", "low", "high"))
    for place, score, low, high in zip(places, *columns, strict=True):
        after = score >= 0
        sign = "+" if round(score, 3) > 0 else ""
        axes.annotate(
            f"{sign}{fixed(score, 3)}".replace("-", "\N{MINUS SIGN}"),
            (max(high, 0.0) if after else min(low, 0.0), place),
            xytext=(3 if after else -3, 0),
            textcoords="offset points",
            ha="left" if after else "right",
            va="center",
            fontsize=7,
        )
    names = [
        f"{step}: {text if len(text) <= letters else text[: letters - 1] + '…'}"
        for step, text in zip(part["step"], part["changed"], strict=True)
    ]
    axes.set_yticks(list(places), [plain(name) for name in names], fontsize=7)
    axes.set_ylim(len(part) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.axvline(0.0, color="#404040", linewidth=0.6, zorder=2.5)
