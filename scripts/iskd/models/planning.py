"""What each step leaves of a model, worked out before anything is trained."""

from dataclasses import asdict
from typing import Any

from transformers import PreTrainedConfig

from iskd.models.recipes import Sizes, block_parameters, parameter_count, resolve_sizes
from iskd.models.substitution import compact_config

# How a request names its targets, beside the sizes themselves.
_TARGETS = ("recipe", "reduction", "like")


def requested_sizes(config: PreTrainedConfig, request: dict[str, Any], replaced: int) -> Sizes:
    """Settle the sizes that a study's config asks for.

    Args:
        config: the teacher's config.
        request: ``recipe``; ``reduction`` or None; the sizes that are given, None for the others;
            and ``like``, another request whose block is not to be exceeded, or None.
        replaced: blocks that will be replaced, for ``reduction``.

    Raises:
        UserError: sizes that do not fit, or a reduction out of reach.
    """
    given = {key: value for key, value in request.items() if key not in _TARGETS}
    like = request.get("like")
    parameters = None
    if like is not None and request["reduction"] is None:
        parameters = block_parameters(config, requested_sizes(config, like, replaced))
    return resolve_sizes(
        config,
        request["recipe"],
        given,
        replaced=replaced,
        reduction=request["reduction"],
        parameters=parameters,
    )


def plan_substitutions(
    config: PreTrainedConfig,
    order: list[int] | None,
    steps: int,
    request: dict[str, Any],
    *,
    headline: int | None = None,
) -> dict[str, Any]:
    """List block, parameters and reduction (1 - parameters / teacher's) of every step.

    Args:
        config: the teacher's config.
        order: the blocks in their order; None where each step measures which one goes.
        steps: how many blocks go.
        request: what replaces them, as :func:`requested_sizes` reads it.
        headline: the step at which a reduction is to be reached; left out, the last one.

    Raises:
        UserError: the order names a block the model has not, or one twice, or the sizes do not fit.
    """
    whole = parameter_count(config)
    sizes = requested_sizes(config, request, headline or steps)
    # All blocks of a decoder are alike, so which ones go does not matter for the counts.
    blocks = order if order is not None else list(range(steps))
    planned = []
    for step in range(1, steps + 1):
        left = parameter_count(compact_config(config, blocks[:step], sizes))
        block = order[step - 1] if order is not None else None
        planned.append(
            {"step": step, "block": block, "parameters": left, "reduction": 1 - left / whole}
        )
    return {
        "teacher_parameters": whole,
        "steps": planned,
        "recipe": request["recipe"],
        "sizes": asdict(sizes),
    }


def new_block_sizes(config: PreTrainedConfig, spec: dict[str, Any]) -> Sizes:
    """Settle the sizes of a job's new blocks, which are those of its arm's plan.

    Args:
        config: the teacher's config.
        spec: the job's parameters: ``request``, and ``planned`` where a reduction is asked for (the
            blocks that are replaced when it is to be reached).

    Raises:
        UserError: sizes that do not fit, or a reduction out of reach.
    """
    return requested_sizes(config, spec["request"], spec.get("planned", 1))


def matched_parameters(config: PreTrainedConfig, spec: dict[str, Any]) -> int:
    """Count what the reference of a baseline has left, as its plan says.

    Args:
        config: the teacher's config.
        spec: what :func:`new_block_sizes` reads, and ``replaced``, the blocks the reference has
            replaced (None for one that it measures).

    Raises:
        UserError: sizes that do not fit, or a reduction out of reach.
    """
    blocks = range(len(spec["replaced"]))  # all blocks are alike
    return parameter_count(compact_config(config, list(blocks), new_block_sizes(config, spec)))
