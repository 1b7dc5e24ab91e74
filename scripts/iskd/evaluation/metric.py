"""A measured number with its uncertainty."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iskd.evaluation.statistics import Estimate


@dataclass(frozen=True)
class Metric:
    """A number found on n items: mostly their mean, else what its name says (a median, a count).

    Attributes:
        value: The number.
        stderr: Its standard error; None where it is undefined (fewer than two items) or unknown.
        n: Number of items, or of what else was counted: repeats, jobs, n-grams.
        low: Lower end of the 95 % interval, where one was worked out.
        high: Upper end of it.
        clusters: Number of sources that the items come from, where they are known.
    """

    value: float
    stderr: float | None
    n: int
    low: float | None = None
    high: float | None = None
    clusters: int | None = None


def metric_of(estimate: "Estimate") -> Metric:
    """Write an estimate as JSON takes it: what is not known is None, not NaN."""
    stderr, low, high = (
        None if math.isnan(number) else number
        for number in (estimate.stderr, estimate.low, estimate.high)
    )
    return Metric(estimate.value, stderr, estimate.n, low, high, estimate.clusters)
