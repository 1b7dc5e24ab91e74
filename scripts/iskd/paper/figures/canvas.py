"""What the figures share: panels, lines, bars, a legend that fits, and files of fixed bytes."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import LineStyleType

from iskd.errors import UserError
from iskd.paper.csv_text import csv_text
from iskd.paper.layout import figure_page
from iskd.paper.metrics import tidy
from iskd.paper.style import COLUMN_WIDTH, REFERENCE_COLOUR, TEXT_WIDTH, ArmStyle, paper_style

FIGURE_FORMATS = ("pdf", "svg", "png")
ROW_HEIGHT = 1.95
"""Height of one row of panels, in inches."""
TEACHER_MARKER = "o"
"""Drawn hollow, where the teacher is a point and not a line."""
PALE = 0.35
"""Opacity of what stands behind: other steps than the one reported, dominated points."""

MOST_PANELS = 6
"""So many stand in one figure at most, two rows of three: smaller ones cannot be read."""

_LABEL_HEIGHT = 0.1  # inches, for a label shared by all panels
_EDGE = 0.4  # points, of the white rim that parts markers lying on one another
# Letters that fit above a panel and into a line of the legend.
_TITLE_LETTERS = {1: 88, 2: 44, 3: 28}
_NARROW_LETTERS = 40
ORIGIN = "iskd-request:"
"""What stands before the digest in a figure's metadata."""
# What matplotlib would add on its own: times, and its version, which the manifest records.
_METADATA: Mapping[str, dict[str, None]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


def teacher_rows(metrics: pd.DataFrame, teacher: str) -> pd.DataFrame:
    """Return the rows of one teacher's models, checked and in canonical order.

    Raises:
        UserError: there is none, the table holds several studies of the teacher, or a row fails
            the checks of `iskd.paper.metrics.tidy`.
    """
    checked = tidy(metrics)
    own = checked[checked["teacher"] == teacher]
    if own.empty:
        known = ", ".join(sorted(set(checked["teacher"]))) or "none"
        raise UserError(f"metrics: no rows for the teacher {teacher!r}; there are: {known}")
    if own["study"].nunique() > 1:
        raise UserError(f"metrics: several studies of {teacher!r}; a figure shows one")
    return own


def save_figure(figure: Figure, frame: pd.DataFrame, stem: Path, origin: str = "") -> None:
    """Write the figure as `<stem>.pdf`, `.svg` and `.png` (200 dpi), and its numbers as `.csv`.

    The bytes depend on the figure and the libraries alone: not on the time, the folder, the user's
    settings or the process.

    Args:
        figure: the figure.
        frame: the numbers drawn.
        stem: path of the files, without suffix.
        origin: digest of the request that the figure answers (`Job.request_digest`), which goes
            into each file's metadata: whoever has the file alone finds the statement by it.
    """
    named = dict.fromkeys(("Keywords", "Identifier", "Source"), f"{ORIGIN}{origin}")
    with paper_style():
        for suffix, key in zip(FIGURE_FORMATS, named, strict=True):
            metadata = {**_METADATA[suffix], **({key: named[key]} if origin else {})}
            figure.savefig(_with_suffix(stem, suffix), format=suffix, metadata=metadata)
    _with_suffix(stem, "csv").write_bytes(csv_text(frame).encode())


def save_page(stem: Path, caption: str) -> None:
    """Write a saved figure with its caption beneath as a page, `<stem>.html`, for the report.

    Args:
        stem: path of the figure's files, without suffix.
        caption: what `workflow/report/figure_<name>.rst` says.
    """
    svg = _with_suffix(stem, "svg").read_text(encoding="utf-8")
    _with_suffix(stem, "html").write_bytes(figure_page(svg, caption).encode())


def _with_suffix(stem: Path, suffix: str) -> Path:
    # Path.with_suffix would cut a stem such as "gpt2-v1.5" at its last point.
    return stem.with_name(f"{stem.name}.{suffix}")


def columns_for(panels: int) -> int:
    """Give in how many columns so many panels stand."""
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)


def make_panels(
    count: int, *, row_height: float = ROW_HEIGHT, **shared: str | bool
) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels: one as wide as a column of text, several as wide as the page's.

    Args:
        count: number of panels.
        row_height: of a row of panels, in inches.
        **shared: `sharex` and `sharey` of matplotlib's `subplots`.
    """
    columns = columns_for(count)
    rows = math.ceil(count / columns)
    width = COLUMN_WIDTH if count == 1 else TEXT_WIDTH
    figure = new_figure(width, rows * row_height + _LABEL_HEIGHT)
    grid: Any = figure.subplots(rows, columns, squeeze=False, **shared)  # type: ignore[call-overload]
    axes = list(grid.flat)
    for extra in axes[count:]:
        extra.remove()
    # The last panel of each column may stand above an empty place.
    for upper in axes[max(0, count - columns) : count]:
        upper.tick_params(labelbottom=True)
    return figure, axes[:count]


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def set_title(axes: Axes, text: str, columns: int, **how: float) -> None:
    """Write a panel's title, in several lines where one would be wider than the panel."""
    narrow = axes.get_figure(root=True).get_figwidth() < TEXT_WIDTH  # type: ignore[union-attr]
    letters = _NARROW_LETTERS if narrow else _TITLE_LETTERS[columns]
    axes.set_title(plain("\n".join(textwrap.wrap(text, letters))), **how)  # type: ignore[arg-type]


def plain(text: str) -> str:
    """Keep matplotlib from reading text between dollar signs as a formula."""
    return text.replace("$", r"\$")


def few_ticks(axis: Axis, count: int = 5) -> None:
    """Put at most so many ticks on an axis, at round numbers."""
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10]))


def whole_ticks(axis: Axis, count: int = 8) -> None:
    """Put at most so many ticks on an axis, at whole numbers."""
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 5, 10], integer=True))


def set_range(axes: Axes, low: float, high: float) -> None:
    """Set the range of the horizontal axis, with room for markers at its ends."""
    axes.set_xlim(low - 0.07 * (high - low), high + 0.05 * (high - low))


def line_style(style: ArmStyle) -> LineStyleType:
    """Give an arm's dashes as matplotlib takes them."""
    return (0, style.dashes) if style.dashes else "solid"


def draw_level(
    axes: Axes,
    level: float,
    style: ArmStyle,
    interval: tuple[float, float] = (math.nan, math.nan),
) -> None:
    """Draw a horizontal line, and its interval as a band where it is known."""
    axes.axhline(level, color=style.colour, linewidth=0.9, linestyle=line_style(style), zorder=1.5)
    if math.isfinite(interval[0]):
        axes.axhspan(*interval, color=style.colour, alpha=0.1, linewidth=0)


def interval_of(rows: pd.DataFrame) -> list[tuple[float, float]]:
    """Give from where to where each row's value and its interval reach."""
    low, high = (rows[name].fillna(rows["score"]) for name in ("low", "high"))
    ends = zip(low.clip(upper=rows["score"]), high.clip(lower=rows["score"]), strict=True)
    return [(float(one), float(other)) for one, other in ends]


def draw_points(
    axes: Axes,
    rows: pd.DataFrame,
    style: ArmStyle,
    x: str,
    *,
    joined: bool,
    alpha: float = 1.0,
    hollow: bool = False,
) -> None:
    """Draw the column `score` of an arm's rows against the column `x`, as a line or as markers."""
    seaborn.lineplot(
        data=rows,
        x=x,
        y="score",
        # The means are in the frame already; seaborn's own interval is a random bootstrap.
        estimator=None,
        errorbar=None,
        color=style.colour,
        linestyle=line_style(style) if joined else "none",
        marker=style.marker,
        markersize=style.marker_size,
        alpha=alpha,
        legend=False,
        ax=axes,
        zorder=3 if joined else 4,
        **_rim(style.colour, hollow=hollow),
    )


def _rim(colour: str, *, hollow: bool) -> dict[str, str | float]:
    if hollow:
        return {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 0.9}
    return {"markeredgecolor": "white", "markeredgewidth": _EDGE}


def draw_bars(axes: Axes, rows: pd.DataFrame, colour: str, x: str, *, alpha: float = 1.0) -> None:
    """Draw the intervals of `rows`, `low` to `high` around `score`, as bars at the column `x`.

    They are capped where they span seeds.
    """
    for kind, capsize, strength in (("seeds", 2.2, 0.9), ("items", 0.0, 0.45)):
        own = rows[rows["spread_of"] == kind]
        own = own[own["low"].notna()]
        # An interval of another kind than the value need not hold it.
        lengths = [
            (own["score"] - own["low"]).clip(lower=0),
            (own["high"] - own["score"]).clip(lower=0),
        ]
        axes.errorbar(
            own[x],
            own["score"],
            yerr=lengths,
            fmt="none",
            ecolor=colour,
            elinewidth=0.8,
            capsize=capsize,
            capthick=0.8,
            alpha=alpha * strength,
            zorder=2,
        )


def handle(style: ArmStyle, *, joined: bool = True, hollow: bool = False) -> Line2D:
    """Make the legend's entry of an arm: a line with its marker, or the marker alone."""
    return Line2D(
        [],
        [],
        color=style.colour,
        linestyle=line_style(style) if joined else "none",
        marker=style.marker,
        markersize=style.marker_size,
        label=style.label,
        **_rim(style.colour, hollow=hollow),  # type: ignore[arg-type]
    )


def reference_style(label: str, dashes: Sequence[float]) -> ArmStyle:
    """Give the look of something that is no arm."""
    return ArmStyle(label, REFERENCE_COLOUR, "None", tuple(dashes))


def finish(figure: Figure, handles: Iterable[Line2D]) -> Figure:
    """Put a legend above the panels, make room for it, and settle where everything stands.

    Without handles there is none.
    """
    if handles := list(handles):
        legend = _draw_legend(figure, handles)
        height = legend.get_window_extent().height / figure.dpi
        figure.set_figheight(figure.get_figheight() + height)
    # Each pass of the layout starts from the one before and moves things by a last bit, which
    # shows in the ids of an SVG. One pass, and the bytes no longer depend on earlier drawings.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _draw_legend(figure: Figure, handles: list[Line2D]) -> Legend:
    letters = _NARROW_LETTERS if figure.get_figwidth() < TEXT_WIDTH else _TITLE_LETTERS[1]
    for each in handles:
        each.set_label(plain("\n".join(textwrap.wrap(str(each.get_label()), letters))))
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
