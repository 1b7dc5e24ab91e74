"""The recipe ``best``: what the ablations in docs/ablation.md found to lose least."""

from typing import Any

BEST: dict[str, Any] = {
    "compact": {"recipe": "parts"},
    "objective": {"next_token": 0.5, "kl": 0.5},
    # Nothing in these blocks is fresh.
    "training": {"learning_rate": {"rest": "compact"}, "warmup": 0.1},
    "warm_start": 0.0,
}
"""A choice at each step: for arms of method iskd that name neither an order nor another block."""

BEST_IN_ORDER: dict[str, Any] = {
    "compact": {"recipe": "narrow", "initialisation": "least_squares"},
    "objective": {"next_token": 0.5, "kl": 0.5, "temperature": 2.0},
    "warm_start": 0.0,
}
"""For all others: blocks that are replaced in an order."""
# Only for blocks that go one by one: the other schedules must know the order beforehand.
_BEST_ORDER = "measured"


def with_best(arm: Any) -> Any:
    """Fill in what an arm of recipe ``best`` leaves out, key by key.

    ``compact``, ``objective`` and ``training`` count as a whole: who sets one of them means all of
    it. An order or a block that is given takes blocks one by one, and so do other schedules.
    """
    if not isinstance(arm, dict) or arm.get("recipe") != "best":
        return arm
    one_by_one = arm.get("method") == "iskd"
    own = arm.get("compact", BEST["compact"])
    chooses = isinstance(own, dict) and own.get("recipe") == "parts"
    if one_by_one and chooses and "order" not in arm:
        return {**BEST, **arm}
    order = {"order": _BEST_ORDER} if one_by_one else {}
    return {**BEST_IN_ORDER, **order, **arm}
