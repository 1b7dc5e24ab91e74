"""The recipe ``best``: what the ablation in docs/ablation.md found to lose least."""

from typing import Any

BEST: dict[str, Any] = {
    "compact": {"recipe": "narrow", "initialisation": "least_squares"},
    "objective": {"next_token": 0.5, "kl": 0.5, "temperature": 2.0},
    "warm_start": 0.0,
}
# Only for blocks that go one by one: the other schedules must know the order beforehand.
BEST_ORDER = "measured"


def with_best(arm: Any) -> Any:
    """Fill in what an arm of recipe ``best`` leaves out, key by key.

    ``compact`` and ``objective`` count as a whole: who sets one of them means all of it.
    """
    if not isinstance(arm, dict) or arm.get("recipe") != "best":
        return arm
    order = {"order": BEST_ORDER} if arm.get("method") == "iskd" else {}
    return {**BEST, **order, **arm}
