"""One look for all figures and tables: names, order, colours, markers and dashes.

Colours are those of Okabe and Ito (Color Universal Design, 2008) with a reserve from Paul Tol's
"muted" scheme, both distinguishable with any common colour vision. Marker and dashes differ
as well, so that a figure survives a print in grey.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import matplotlib.style

from iskd.evaluation.results import TEACHER_ARM

if TYPE_CHECKING:
    import pandas as pd

TEXT_WIDTH = 6.3
"""Width of the text of a two-column A4 paper, in inches."""

COLUMN_WIDTH = 3.03
"""Width of one column of it, in inches."""

REFERENCE_COLOUR = "#404040"
"""Colour of the teacher's and of the chance line: neither is an arm."""

_STYLE_FILE = Path(__file__).with_name("iskd.mplstyle")


@dataclass(frozen=True)
class ArmStyle:
    """How one arm is named and drawn.

    Attributes:
        label: what legend and tables call it.
        colour: as "#rrggbb".
        marker: a matplotlib marker.
        dashes: lengths of strokes and gaps in line widths; empty for a solid line.
        marker_size: in points.
    """

    label: str
    colour: str
    marker: str
    dashes: tuple[float, ...] = field(default=())
    marker_size: float = 4.4


_KNOWN_ARMS = {
    TEACHER_ARM: ArmStyle("Teacher", REFERENCE_COLOUR, "None", (5, 2)),
    # Larger than the others: it often lies on the teacher's line and beside the axis.
    "teacher_tuned": ArmStyle("Tuned teacher", "#000000", "*", marker_size=8),
    "iskd": ArmStyle("ISKD", "#0072B2", "o"),
    "one_shot": ArmStyle("One-shot", "#E69F00", "s", (4, 1.5)),
    "layer_drop": ArmStyle("Layer drop", "#009E73", "^", (6, 1.5, 1, 1.5)),
    "l1": ArmStyle("L1 pruning", "#D55E00", "v", (1.5, 1.2)),
    "kd": ArmStyle("KD", "#CC79A7", "D", (3, 1.5, 1, 1.5, 1, 1.5), 4),
}
# The three lists have lengths without a common divisor: 5 * 7 * 4 arms before one look repeats.
_OTHER_COLOURS = ("#56B4E9", "#882255", "#999933", "#332288", "#44AA99")
_OTHER_MARKERS = ("X", "P", "<", ">", "d", "h", "p")
_OTHER_DASHES = ((2.5, 1), (8, 2), (1, 1), (5, 1, 1, 1))
_ACRONYMS = frozenset({"iskd", "kd", "kl", "l1", "lm", "mse", "svd"})

_TASK_TITLES = {
    "arc_easy": "ARC-easy",
    "arc_challenge": "ARC-challenge",
    "cbt_context": "CBT, with context",
    "cbt_question": "CBT, question only",
    "choices": "Right answers",
    "generation": "Generation",
    "hellaswag": "HellaSwag",
    "heldout": "Held-out text",
    "lambada_openai": "LAMBADA",
    "piqa": "PIQA",
    "wikitext": "WikiText",
}


def arm_styles(arms: Iterable[str]) -> dict[str, ArmStyle]:
    """Return the style of each arm, in the order in which arms are listed.

    Known arms come first, in a fixed order and always with the same look; the others follow by
    name and share a reserve of looks, which they take in that order.
    """
    given = set(arms)
    styles = {arm: style for arm, style in _KNOWN_ARMS.items() if arm in given}
    for i, arm in enumerate(sorted(given - _KNOWN_ARMS.keys())):
        styles[arm] = ArmStyle(
            _other_label(arm),
            _OTHER_COLOURS[i % len(_OTHER_COLOURS)],
            _OTHER_MARKERS[i % len(_OTHER_MARKERS)],
            _OTHER_DASHES[i % len(_OTHER_DASHES)],
            # Crosses and narrow shapes need more room than a disc to weigh the same.
            marker_size=5.4,
        )
    return styles


def in_arm_order(frame: "pd.DataFrame", *columns: str) -> "pd.DataFrame":
    """Sort rows by columns, arms as :func:`arm_styles` lists them; rows that are alike stay."""
    ranks = {arm: rank for rank, arm in enumerate(arm_styles(frame["arm"]))}
    return frame.sort_values(
        list(columns),
        key=lambda column: column.map(ranks) if column.name == "arm" else column,
        kind="stable",
        ignore_index=True,
    )


def _other_label(arm: str) -> str:
    words = [word.upper() if word in _ACRONYMS else word for word in arm.split("_")]
    label = " ".join(words)
    return label[:1].upper() + label[1:]


def task_title(task: str) -> str:
    """Return what figures and tables call the task."""
    return _TASK_TITLES.get(task, task.replace("_", " "))


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw and save with the project's look alone: no matplotlibrc of a user or folder counts."""
    with matplotlib.style.context(["default", _STYLE_FILE]):
        yield
