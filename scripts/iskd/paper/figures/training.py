"""Training curves across steps, with the substitutions marked."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from iskd.errors import UserError
from iskd.paper.figures.canvas import few_ticks, finish, handle, line_style, new_figure, plain
from iskd.paper.style import TEXT_WIDTH, ArmStyle, arm_styles, in_arm_order, paper_style

TRAINING = "joint"
"""The phase in which a whole model is trained; what is fitted before it has losses of its own."""

_HEIGHT = 2.4  # inches
# How many times the smallest loss the largest one is where the axis becomes logarithmic.
_LOGARITHMIC = 2.5


def read_curves(
    histories: Sequence[str], spec: Mapping[str, Any], teacher: str
) -> list[dict[str, Any]]:
    """Read the next-token losses of one teacher's arms in training.

    Where an arm is trained on something else, that is another column of its history than its loss.

    Args:
        histories: paths of ``history.jsonl``.
        spec: ``histories``, which says in the same order what each is about (teacher, arm, seed,
            step), ``chained``, the arms whose steps build on one another, and ``mixed``, the arms
            whose loss is not that of the next token alone.
        teacher: whose arms.

    Returns:
        rows with arm, seed, step, tokens (trained on since the teacher, all earlier steps of a
        chain included), loss (nats/token); in the order of tokens within each arm, seed and step.
        An arm of ``mixed`` that was not told its next-token loss has none.
    """
    found: dict[tuple[str, int], list[tuple[int, list[dict[str, Any]]]]] = defaultdict(list)
    for about, path in zip(spec["histories"], histories, strict=True):
        if about["teacher"] == teacher:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            found[about["arm"], about["seed"]].append((about["step"], list(map(json.loads, lines))))
    rows: list[dict[str, Any]] = []
    for (arm, seed), runs in found.items():
        before = 0
        for step, history in sorted(runs, key=lambda run: run[0]):
            for line in history:
                loss = line.get("next_token", None if arm in spec["mixed"] else line["loss"])
                if line["phase"] == TRAINING and loss is not None:
                    own = {"tokens": before + line["tokens"], "loss": loss}
                    rows.append({"arm": arm, "seed": seed, "step": step} | own)
            before += history[-1]["tokens"] if arm in spec["chained"] else 0
    return rows


def training_figure(
    curves: Iterable[Mapping[str, Any]], chained: Sequence[str]
) -> tuple[Figure, pd.DataFrame]:
    """Draw the next-token loss in training against the tokens trained on since the teacher.

    Lines are means over seeds where these have seen equally many tokens; of the arms that are no
    chain, the last step's. Dotted vertical lines mark where a chain replaces its next block.

    Args:
        curves: rows of `read_curves`.
        chained: the arms whose steps build on one another.

    Returns:
        The figure, and the numbers in it: columns arm, step, tokens, score (nats/token), low, high
        (smallest and largest seed), seeds.

    Raises:
        UserError: nothing was trained.
    """
    table = pd.DataFrame(list(curves))
    if table.empty:
        raise UserError("nothing was trained for this teacher, so there is no curve to draw")
    last = table.groupby("arm")["step"].transform("max")
    table = table[table["arm"].isin(list(chained)) | (table["step"] == last)]
    frame = (
        table.groupby(["arm", "step", "tokens"])
        .agg(
            score=("loss", "mean"),
            low=("loss", "min"),
            high=("loss", "max"),
            seeds=("loss", "size"),
        )
        .reset_index()
    )
    styles = arm_styles(frame["arm"])
    frame = in_arm_order(frame, "arm", "step", "tokens")
    scale, unit = _scale(float(frame["tokens"].max()))
    with paper_style():
        figure = new_figure(TEXT_WIDTH, _HEIGHT)
        axes = figure.subplots()
        for arm, style in styles.items():
            own = frame[frame["arm"] == arm]
            places = own["tokens"] / scale
            axes.plot(
                places,
                own["score"],
                color=style.colour,
                linestyle=line_style(style),
                linewidth=1.0,
                marker=style.marker,
                markersize=style.marker_size * 0.7,
                # A marker at every point would hide the line.
                markevery=max(1, len(own) // 10),
                zorder=3,
            )
            if (own["seeds"] > 1).any():
                axes.fill_between(
                    places, own["low"], own["high"], color=style.colour, alpha=0.12, linewidth=0
                )
        _mark_substitutions(axes, frame, chained, styles, scale)
        axes.set(ylabel="Next-token loss in training (nats/token)")
        axes.set_xlabel(plain(f"Tokens trained on since the teacher{unit}"))
        axes.set_xlim(left=0)
        few_ticks(axes.xaxis, 8)
        _set_losses(axes, frame)
        return finish(figure, [handle(style) for style in styles.values()]), frame


def _scale(most: float) -> tuple[float, str]:
    for size, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if most >= 2 * size:
            return size, f" ({name})"
    return 1.0, ""


def _mark_substitutions(
    axes: Any,
    frame: pd.DataFrame,
    chained: Sequence[str],
    styles: Mapping[str, ArmStyle],
    scale: float,
) -> None:
    """Mark where each chain's steps end and the next block is replaced."""
    for arm in [arm for arm in styles if arm in chained]:
        ends = frame[frame["arm"] == arm].groupby("step")["tokens"].max().sort_index()
        starts = [0.0, *(float(end) / scale for end in ends.iloc[:-1])]
        for start in starts:
            axes.axvline(
                start,
                color=styles[arm].colour,
                linewidth=0.7,
                linestyle=(0, (1, 2)),
                zorder=1.5,
            )


def _set_losses(axes: Any, frame: pd.DataFrame) -> None:
    """Make the axis of losses logarithmic where some are several times as large as others."""
    low, high = float(frame["low"].min()), float(frame["high"].max())
    if low > 0 and high > _LOGARITHMIC * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.1, high * 1.1)
        ticks = [t * 10.0**p for p in range(-4, 4) for t in (1, 2, 3, 5, 7)]
        ticks = [tick for tick in ticks if low / 1.1 <= tick <= high * 1.1]
        axes.yaxis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_ticks([], minor=True)
    else:
        few_ticks(axes.yaxis)
