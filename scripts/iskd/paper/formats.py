"""How numbers are printed: one rounding for tables, macros, summary and model cards."""

import math
import re
from dataclasses import dataclass

import pandas as pd

from iskd.errors import UserError
from iskd.paper.measures import measure

MISSING = "–"
"""What stands for a number that was not measured."""

_SMALLEST_P = 0.001


@dataclass(frozen=True)
class Quantity:
    """How one kind of number is printed.

    Attributes:
        name: in words, as a sentence would call it.
        unit: the unit after multiplication by `factor`; empty for a bare number.
        factor: from the stored value to the printed one.
        decimals: of the printed value; None for three significant digits.
        scientific: whether it is printed with a power of ten.
    """

    name: str
    unit: str = ""
    factor: float = 1.0
    decimals: int | None = None
    scientific: bool = False

    def text(self, value: float) -> str:
        """Print a stored value without its unit."""
        if pd.isna(value):
            return MISSING
        scaled = value * self.factor
        if self.scientific:
            return f"{scaled:.3g}"
        return fixed(scaled, _decimals(scaled) if self.decimals is None else self.decimals)


PARAMETERS = Quantity("parameters", decimals=0)
CHECKPOINT = Quantity("size on disk", "MB", 1e-6, 1)
SHARE = Quantity("share", "%", 100.0, 1)
_FACTS = {
    ("model", "parameters"): PARAMETERS,
    ("model", "flops_per_token"): Quantity("FLOPs per token", scientific=True),
    ("model", "checkpoint_bytes"): CHECKPOINT,
    ("model", "replaced_block"): Quantity("block replaced last", decimals=0),
    ("training", "tokens"): Quantity("training tokens", decimals=0),
    ("training", "flops"): Quantity("training FLOPs", scientific=True),
    ("efficiency", "draft_acceptance"): Quantity("tokens accepted of a draft", "%", 100.0, 1),
    ("efficiency", "draft_ratio"): Quantity("speed with it as a draft", "×", decimals=2),
    ("cost", "device_hours"): Quantity("device hours", "h"),
    ("cost", "evaluation_hours"): Quantity("hours of evaluation", "h"),
    ("cost", "energy"): Quantity("energy", "kJ", 1e-3),
}
_EFFICIENCY = re.compile(r"(prefill|decode|memory)_b(\d+)(_ratio)?")
_MEASURED = {
    "prefill": Quantity("prefill", "tokens/s"),
    "decode": Quantity("decoding", "tokens/s"),
    "memory": Quantity("peak memory", "MB", 1e-6, 1),
}
# What is derived from a per-item metric (metrics.csv in workflow/documentation.md).
_DERIVED = re.compile(r"(.+)_(difference|mcnemar|retention|margin|changed|flipped)")


def quantity(task: str, metric: str) -> Quantity:
    """Say how a number of metrics.csv or measurements.csv is printed.

    Raises:
        UserError: the metric is not known.
    """
    if (task, metric) in _FACTS:
        return _FACTS[task, metric]
    if found := _EFFICIENCY.fullmatch(metric):
        what = _MEASURED[found[1]]
        name = f"{what.name} at batch size {found[2]}"
        if found[3]:
            return Quantity(f"{name}, ratio to the teacher", "×", decimals=2)
        return Quantity(name, what.unit, what.factor, what.decimals)
    if found := _DERIVED.fullmatch(metric):
        return _derived(found[1], found[2])
    how = measure(metric)
    return Quantity(how.name, how.unit, how.factor, how.decimals)


def _derived(metric: str, kind: str) -> Quantity:
    how = measure(metric)
    if kind == "difference":
        unit = "points" if how.unit == "%" else how.unit
        return Quantity(f"{how.name}, difference to the teacher", unit, how.factor, how.decimals)
    if kind == "mcnemar":
        return Quantity(f"{how.name}, p value of McNemar's test against the teacher", decimals=3)
    words = {
        "retention": "share of the teacher's score kept",
        "margin": "share of the teacher's margin over chance kept",
        "changed": "items whose choice changed",
        "flipped": "items whose correctness changed",
    }
    return Quantity(f"{how.name}, {words[kind]}", "%", 100.0, 1)


def is_known(task: str, metric: str) -> bool:
    """Tell whether `quantity` knows how to print the metric."""
    try:
        quantity(task, metric)
    except UserError:
        return False
    return True


def fixed(value: float, decimals: int) -> str:
    """Print a number with so many decimals, and commas between thousands."""
    if pd.isna(value):
        return MISSING
    text = f"{value:,.{decimals}f}"
    # A small negative number must not be printed as minus nothing.
    return text if text.strip("-0.,") else text.removeprefix("-")


def _decimals(value: float) -> int:
    """Give the decimals that leave three significant digits."""
    if not value or not math.isfinite(value):
        return 0
    return max(0, 2 - math.floor(math.log10(abs(value))))


def with_spread(value: float, spread: float, how: Quantity) -> str:
    """Print `value ± spread`; without a spread, the value."""
    text = how.text(value)
    return text if pd.isna(spread) or pd.isna(value) else f"{text} ± {how.text(spread)}"


def interval(low: float, high: float, how: Quantity) -> str:
    """Print `[low, high]`."""
    return f"[{how.text(low)}, {how.text(high)}]"


def with_interval(value: float, low: float, high: float, how: Quantity) -> str:
    """Print `value [low, high]`; without an interval, the value."""
    text = how.text(value)
    return text if pd.isna(low) or pd.isna(value) else f"{text} {interval(low, high, how)}"


def p_value(low: float, high: float) -> str:
    """Print a p value, or the smallest and the largest one of several seeds.

    P values of several seeds are not averaged: their mean is no p value.
    """
    if pd.isna(low):
        return MISSING
    ends = [f"<{_SMALLEST_P}" if p < _SMALLEST_P else f"{p:.3f}" for p in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def with_unit(text: str, unit: str) -> str:
    """Put a unit behind a column's head."""
    return f"{text} ({unit})" if unit else text
