"""What each step leaves of a model, worked out before anything is trained."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from iskd.models.sizes import CompactSizes
from iskd.models.substitution import compact_config, parameter_count


def compact_sizes(sizes: dict[str, Any], config: PreTrainedConfig) -> CompactSizes:
    """Complete the config's sizes of a compact block with the model's own number of positions.

    A shorter inner position embedding would fail on the first text longer than that.
    """
    return CompactSizes(**sizes, positions=config.max_position_embeddings)


def plan_substitutions(
    config: PreTrainedConfig, order: list[int], sizes: dict[str, Any]
) -> dict[str, Any]:
    """List block, parameters and reduction (1 - parameters / teacher's) of every step.

    Raises:
        UserError: the order names a block the model has not, or one twice.
    """
    whole = parameter_count(config)
    compact = compact_sizes(sizes, config)
    steps = []
    for step, block in enumerate(order, 1):
        left = parameter_count(compact_config(config, order[:step], compact))
        steps.append(
            {"step": step, "block": block, "parameters": left, "reduction": 1 - left / whole}
        )
    return {"teacher_parameters": whole, "steps": steps}


def planned_parameters(plan: Path, replaced: list[int]) -> int:
    """Read from a plan how many parameters are left once ``replaced`` are compact.

    Raises:
        RuntimeError: the plan replaces other blocks (it would be out of date).
    """
    steps = json.loads(plan.read_text(encoding="utf-8"))["steps"][: len(replaced)]
    if [step["block"] for step in steps] != replaced:
        raise RuntimeError(f"{plan.name} does not replace the blocks {replaced}")
    return int(steps[-1]["parameters"])
