"""The recipe ``best``: what the ablation in docs/ablation.md found to lose least."""

from typing import Any

BEST: dict[str, Any] = {
    "compact": {"recipe": "narrow", "initialisation": "least_squares"},
    "objective": {"next_token": 0.5, "kl": 0.5, "temperature": 2.0},
    "warm_start": 0.0,
}


def with_best(arm: Any) -> Any:
    """Fill in what an arm of recipe ``best`` leaves out, key by key.

    ``compact`` and ``objective`` count as a whole: who sets one of them means all of it.
    """
    if not isinstance(arm, dict) or arm.get("recipe") != "best":
        return arm
    return {**BEST, **arm}
