"""How much of the teacher's score a model keeps."""

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@overload
def retention(score: float, teacher: float) -> float: ...
@overload
def retention(score: Floats, teacher: Floats) -> Floats: ...
def retention(score: Any, teacher: Any) -> Any:
    """Return score / teacher's score, the definition of "kept" in the ISKD paper.

    Takes numbers or arrays. It is not a number where the teacher scores nothing.
    """
    return corrected_retention(score, teacher, 0.0)


@overload
def corrected_retention(score: float, teacher: float, chance: float) -> float: ...
@overload
def corrected_retention(score: Floats, teacher: Floats, chance: float) -> Floats: ...
def corrected_retention(score: Any, teacher: Any, chance: float) -> Any:
    """Return (score - chance) / (teacher - chance): what is kept of the margin over chance.

    Takes numbers or arrays, all in the same unit. It is not a number where the teacher is no better
    than chance: there is no margin to keep, and a ratio of two negative margins would look like
    success.
    """
    margin = np.subtract(teacher, chance)
    kept = np.subtract(score, chance) / np.where(margin > 0, margin, np.nan)
    return kept if kept.ndim else float(kept)
