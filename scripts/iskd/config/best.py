"""The recipe ``best``: what the ablations in docs/ablation.md found to lose least."""

from typing import Any

BEST: dict[str, Any] = {
    "compact": {"recipe": "parts"},
    "objective": {"next_token": 0.5, "kl": 0.5},
    # Nothing in these blocks is fresh.
    "training": {"learning_rate": {"rest": "compact"}, "warmup": 0.1},
    "warm_start": 0.0,
}
"""What arms of method iskd are filled in with: a choice at each step."""

BEST_IN_ORDER: dict[str, Any] = {
    "compact": {"recipe": "narrow", "initialisation": "least_squares"},
    "objective": {"next_token": 0.5, "kl": 0.5, "temperature": 2.0},
    "warm_start": 0.0,
}
"""The same for blocks that are replaced in an order known beforehand."""


def with_best(arm: Any) -> Any:
    """Fill in what an arm of recipe ``best`` leaves out, key by key.

    ``compact``, ``objective`` and ``training`` count as a whole: who sets one of them means all of
    it. An order that is given takes blocks one by one, and so do schedules other than iskd.
    """
    if not isinstance(arm, dict) or arm.get("recipe") != "best":
        return arm
    if arm.get("method") == "iskd" and arm.get("order", "measured") == "measured":
        return {**BEST, **arm}
    return {**BEST_IN_ORDER, **arm}
