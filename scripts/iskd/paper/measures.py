"""How each metric of `metrics.csv` is named and printed."""

from collections.abc import Mapping
from dataclasses import dataclass

from iskd.errors import UserError

CHANCE = "chance"
"""The metric that holds the score of guessing, in the rows of the teacher."""
HELDOUT = ("heldout", "loss")
PARAMETERS = ("model", "parameters")


@dataclass(frozen=True)
class Measure:
    """How one metric is read and printed.

    Attributes:
        name: what an axis or a column head calls it.
        short: the same for a narrow column.
        unit: the unit after multiplication by `factor`; empty for a bare number.
        factor: from the stored value to the printed one.
        decimals: of the printed value.
        higher_is_better: the direction of improvement.
    """

    name: str
    short: str
    unit: str
    factor: float
    decimals: int
    higher_is_better: bool


MEASURES: Mapping[str, Measure] = {
    "acc": Measure("accuracy", "acc", "%", 100.0, 1, True),
    "acc_norm": Measure("normalised accuracy", "acc_norm", "%", 100.0, 1, True),
    "exact_match": Measure("exact match", "match", "%", 100.0, 1, True),
    "loss": Measure("loss", "loss", "nats/token", 1.0, 3, False),
    "perplexity": Measure("perplexity", "ppl", "", 1.0, 2, False),
    "word_perplexity": Measure("perplexity per word", "ppl/word", "", 1.0, 2, False),
    "byte_perplexity": Measure("perplexity per byte", "ppl/byte", "", 1.0, 3, False),
    "gold_bits_per_byte": Measure("bits per byte, right answers", "bits/byte", "", 1.0, 3, False),
    "teacher_loss": Measure(
        "loss under the teacher", "loss under teacher", "nats/token", 1.0, 3, False
    ),
    "distinct_3": Measure("distinct 3-grams", "distinct 3-grams", "%", 100.0, 1, True),
    "bits_per_byte": Measure("bits per byte", "bits/byte", "", 1.0, 3, False),
}


def measure(metric: str) -> Measure:
    """Return how `metric` is read and printed.

    Raises:
        UserError: the metric is not known.
    """
    if metric not in MEASURES:
        raise UserError(f"metric {metric!r} is not known; known are {', '.join(sorted(MEASURES))}")
    return MEASURES[metric]
