"""Ticks at both ends of an axis, and axes that are broken at a gap."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iskd.paper.figures.scales import gap_of, set_values, ticks_around


@settings(max_examples=200, deadline=None)
@given(
    low=st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
    width=st.floats(0.001, 1e6),
    count=st.integers(3, 8),
)
def test_ticks_are_round_few_and_enclose_all(low: float, width: float, count: int) -> None:
    ticks = ticks_around(low, low + width, count)
    assert 2 <= len(ticks) <= count
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert ticks[0] <= low + 1e-6 * steps[0]
    assert ticks[-1] >= low + width - 1e-6 * steps[0]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.83, 1.32, [0.8, 1.0, 1.2, 1.4]), (600, 800, [600, 650, 700, 750, 800]), (3, 3, None)],
)
def test_an_axis_has_ticks_at_its_ends(low: float, high: float, ticks: list[float] | None) -> None:
    found = ticks_around(low, high, 5)
    assert found[0] <= low <= high <= found[-1]
    if ticks is not None:
        assert found == pytest.approx(ticks)


def points(*values: float) -> list[tuple[float, float]]:
    return [(value, value) for value in values]


def test_an_axis_is_broken_where_a_gap_takes_most_of_it() -> None:
    assert gap_of(points(0.77, 0.78, 2.65)) == ((0.77, 0.78), (2.65, 2.65))
    assert gap_of(points(0.1, 2.64, 2.65)) == ((0.1, 0.1), (2.64, 2.65))
    assert gap_of(points(1.0, 2.0, 3.0)) is None
    assert gap_of(points(1.0)) is None
    # An interval that reaches across leaves no gap.
    assert gap_of([(0.77, 2.5), (0.78, 0.78), (2.65, 2.65)]) is None


def drawn(values: list[tuple[float, float]], which: str = "y", *, broken: bool = True) -> Axes:
    axes = Figure().subplots()
    set_values(axes, which, values, broken=broken)
    return axes


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_broken_axis_keeps_order_and_shows_what_lies_together(which: str) -> None:
    values = points(0.768, 0.773, 0.787, 2.607, 2.673)
    axes = drawn(values, which)
    low, high = getattr(axes, f"get_{which}lim")()
    transform = getattr(axes, f"{which}axis").get_transform()
    knots = transform.transform(np.array([low, *(value for value, _ in values), high]))
    assert all(np.diff(knots) > 0)
    # The three values that lie together take more of the axis than one percent of it.
    assert knots[3] - knots[1] > 0.3 * (knots[-1] - knots[0])
    ticks = getattr(axes, f"get_{which}ticks")()
    assert (ticks[0], ticks[-1]) == (low, high)
    labels = [label.get_text() for label in getattr(axes, f"get_{which}ticklabels")()]
    # Two ticks lie at the break, where there is no room for labels.
    shown = {label: tick for tick, label in zip(ticks, labels, strict=True) if label}
    assert len(shown) == len(labels) - 2
    assert labels[0]
    assert labels[-1]
    for label, tick in shown.items():
        assert float(label) == pytest.approx(tick, rel=1e-3)


def test_a_whole_axis_ends_in_ticks_and_labels_them_alike() -> None:
    axes = drawn(points(0.89, 0.97, 1.28), "x", broken=False)
    assert axes.get_xscale() == "linear"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert len({len(label.partition(".")[2]) for label in labels}) == 1
    assert axes.get_xlim() == (axes.get_xticks()[0], axes.get_xticks()[-1])


def test_negative_numbers_have_a_minus_sign() -> None:
    axes = drawn(points(-2.0, -1.0, 1.0))
    first = axes.get_yticklabels()[0].get_text()
    assert first.startswith("\N{MINUS SIGN}")


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=1, max_size=8))
def test_any_values_can_be_shown(values: list[float]) -> None:
    axes = drawn(points(*values))
    low, high = axes.get_ylim()
    assert low <= min(values) <= max(values) <= high
    ticks = axes.get_yticks()
    assert all(one < other for one, other in itertools.pairwise(ticks))
