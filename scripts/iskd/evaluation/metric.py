"""A measured number with its uncertainty."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A mean over n items.

    Attributes:
        value: The mean.
        stderr: Standard error of the mean; None where fewer than two items leave it undefined.
        n: Number of items.
    """

    value: float
    stderr: float | None
    n: int
