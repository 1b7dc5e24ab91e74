"""Axes with a tick at both ends, and broken ones, where a few values lie far from all others."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis

Range = tuple[float, float]
_STEPS = (1.0, 2.0, 2.5, 5.0)
# An axis is broken where one gap takes more than this share of it.
_WORTH = 0.55
# What the gap then takes, and what the side with more values gets of the rest.
_GAP, _MAJOR = 0.07, 0.68
# Ticks at most on the other side.
_FEW = 3
# Room beyond the outermost values, as a share of their range.
_ROOM = 0.05


def ticks_around(low: float, high: float, count: int) -> list[float]:
    """Give at most so many round ticks, the first at or below `low`, the last at or above `high`.

    Args:
        low: the smallest value.
        high: the largest, or the same.
        count: three or more.
    """
    if high <= low:
        spare = abs(low) * 0.1 or 1.0
        low, high = low - spare, high + spare
    power = math.floor(math.log10((high - low) / count))
    for step in (each * 10.0**exponent for exponent in (power, power + 1) for each in _STEPS):
        # Without the tolerance 0.3 would lie above 3 steps of 0.1.
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first + 1 <= count:
            return [number * step for number in range(first, last + 1)]
    return [low, high]


def gap_of(values: Iterable[Range]) -> tuple[Range, Range] | None:
    """Find where an axis is to be broken.

    Args:
        values: each value's interval, or the value twice.

    Returns:
        the ranges below and above the gap; None where no gap takes most of the axis
    """
    spans: list[list[float]] = []
    for low, high in sorted(values):
        if spans and low <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], high)
        else:
            spans.append([low, high])
    if len(spans) < 2:
        return None
    gaps = [after[0] - before[1] for before, after in pairwise(spans)]
    place = max(range(len(gaps)), key=gaps.__getitem__)
    if gaps[place] < _WORTH * (spans[-1][1] - spans[0][0]):
        return None
    return (spans[0][0], spans[place][1]), (spans[place + 1][0], spans[-1][1])


def set_values(
    axes: Axes,
    which: str,
    values: Sequence[Range],
    *,
    count: int = 5,
    broken: bool = False,
    letters: Callable[[float], str] | None = None,
) -> None:
    """Make an axis reach from one tick to another around values, broken where that shows more.

    A broken axis is linear on both sides of a hatched band, and keeps the order of all values.
    The ticks beside the band are not labelled: there is no room for both.

    Args:
        axes: the panel.
        which: "x" or "y".
        values: each value's interval, or the value twice.
        count: at most so many ticks, on each side of a break.
        broken: break it where a gap takes most of it.
        letters: writes a tick; left out, with as many digits as the ticks need.
    """
    axis: Axis = getattr(axes, f"{which}axis")
    gap = gap_of(values) if broken else None
    if gap is None:
        low, high = min(low for low, _ in values), max(high for _, high in values)
        room = _ROOM * (high - low)
        ticks = ticks_around(low - room, high + room, count)
        _write(axis, ticks, letters)
        getattr(axes, f"set_{which}lim")(ticks[0], ticks[-1])
        return
    lower = 2 * sum(high <= gap[0][1] for _, high in values) >= len(values)
    counts = (count, _FEW) if lower else (_FEW, count)
    sides = [_side(side, gap, most) for side, most in zip(gap, counts, strict=True)]
    first = (1 - _GAP) * (_MAJOR if lower else 1 - _MAJOR)
    places = [0.0, first, first + _GAP, 1.0]
    knots = [sides[0][0], sides[0][-1], sides[1][0], sides[1][-1]]
    getattr(axes, f"set_{which}scale")(
        "function",
        functions=(
            lambda given: np.interp(given, knots, places),
            lambda given: np.interp(given, places, knots),
        ),
    )
    getattr(axes, f"set_{which}lim")(knots[0], knots[-1])
    _write(axis, [*sides[0], *sides[1]], letters, sides)
    span = axes.axhspan if which == "y" else axes.axvspan
    hatched: dict[str, Any] = {"facecolor": "white", "edgecolor": "#cccccc", "hatch": "/////"}
    span(knots[1], knots[2], linewidth=0, zorder=0.5, **hatched)
    _mark(axes, which, places[1], places[2])


def _side(side: Range, gap: tuple[Range, Range], count: int) -> list[float]:
    """Give the ticks of one side of a break; they stay out of the middle of the gap."""
    middle = (gap[0][1] + gap[1][0]) / 2
    low, high = side
    room = max(_ROOM * (high - low), 1e-3 * (gap[1][0] - gap[0][1]))
    for more in range(max(count - 2, 1)):
        ticks = ticks_around(low - room, high + room, count + more)
        if (side is gap[0] and ticks[-1] < middle) or (side is gap[1] and ticks[0] > middle):
            return ticks
    return [low - room, high + room]


def _write(
    axis: Axis,
    ticks: list[float],
    letters: Callable[[float], str] | None,
    sides: Sequence[list[float]] = (),
) -> None:
    labels = []
    for side in sides or [ticks]:
        digits = max(digits_of(tick, side) for tick in side)
        for tick in side:
            text = letters(tick) if letters else f"{tick:.{digits}f}"
            labels.append(text.replace("-", "\N{MINUS SIGN}"))
    if sides:
        labels[len(sides[0]) - 1] = labels[len(sides[0])] = ""
    axis.set_ticks(ticks, labels)
    axis.set_ticks([], minor=True)


def digits_of(tick: float, ticks: Sequence[float]) -> int:
    """Count the decimals that tell a tick from its neighbours and hide no part of it."""
    step = min((abs(b - a) for a, b in pairwise(ticks)), default=abs(tick))
    for digits in range(7):
        if abs(round(tick, digits) - tick) <= 1e-3 * step:
            return digits
    return 7


def _mark(axes: Axes, which: str, low: float, high: float) -> None:
    """Interrupt the axis itself between two places, with a slanted stroke at both."""
    places = np.array([low, high])
    zero = np.zeros(2)
    points = (zero, places) if which == "y" else (places, zero)
    slant: Any = [(-1, -0.6), (1, 0.6)] if which == "y" else [(-0.6, -1), (0.6, 1)]
    shared: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    axes.plot(*points, color="white", linewidth=2.0, zorder=9, **shared)
    axes.plot(
        *points,
        color="#404040",
        linestyle="none",
        marker=slant,
        markersize=6,
        markeredgewidth=0.7,
        zorder=10,
        **shared,
    )
