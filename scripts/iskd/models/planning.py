"""What each step leaves of a model, worked out before anything is trained."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedConfig

from iskd.models.recipes import Sizes, block_parameters, parameter_count, resolve_sizes
from iskd.models.substitution import compact_config
from iskd.settings import SizeRequest

# The sizes that a request may name.
_SIZES = ("width", "heads", "blocks", "mlp", "activation")


def requested_sizes(config: PreTrainedConfig, request: SizeRequest) -> Sizes:
    """Settle the sizes that a study's config asks for.

    Args:
        config: the teacher's config.
        request: what to plan.

    Raises:
        UserError: sizes that do not fit, or a reduction out of reach.
    """
    given = {name: getattr(request, name) for name in _SIZES}
    if request.published:
        given["published"] = True
    parameters = None
    if request.like is not None and request.reduction is None:
        like = replace(request.like, replaced=request.replaced)
        parameters = block_parameters(config, requested_sizes(config, like))
    assert request.recipe != "parts"  # noqa: S101 - has no sizes beforehand
    return resolve_sizes(
        config,
        request.recipe,
        given,
        replaced=request.replaced,
        reduction=request.reduction,
        parameters=parameters,
    )


def plan_substitutions(
    config: PreTrainedConfig,
    order: list[int] | None,
    steps: int,
    request: SizeRequest,
) -> dict[str, Any]:
    """List block, parameters and reduction (1 - parameters / teacher's) of every step.

    Args:
        config: the teacher's config.
        order: the blocks in their order; None where each step measures which one goes.
        steps: how many blocks go.
        request: how large the blocks that replace them shall be.

    Raises:
        UserError: the order names a block the model has not, or one twice, or the sizes do not fit.
    """
    whole = parameter_count(config)
    planned = []
    for step in range(1, steps + 1):
        left = parameters_after(config, request, step, order)
        block = order[step - 1] if order is not None else None
        planned.append(
            {"step": step, "block": block, "parameters": left, "reduction": 1 - left / whole}
        )
    return {
        "teacher_parameters": whole,
        "steps": planned,
        "recipe": request.recipe,
        "sizes": None if chooses(request) else asdict(requested_sizes(config, request)),
    }


def chooses(request: SizeRequest) -> bool:
    """Say whether each step finds out by itself which blocks become how small."""
    return request.recipe == "parts"


def parameters_after(
    config: PreTrainedConfig, request: SizeRequest, step: int, order: Sequence[int] | None = None
) -> int:
    """Count what a step leaves of a teacher; where it chooses by itself, what it may leave.

    Args:
        config: the teacher's config.
        request: how large the blocks shall be that replace others.
        step: the step, from 1.
        order: the blocks in their order; left out, the first ones: all blocks of a decoder are
            alike.

    Raises:
        UserError: sizes that do not fit, or a reduction out of reach.
    """
    if chooses(request):
        if request.reduction is None:
            assert request.like is not None  # noqa: S101 - the plan names one or the other
            like = replace(request.like, replaced=request.replaced)
            return parameters_after(config, like, step)
        whole = parameter_count(config)
        return whole - math.ceil(whole * request.reduction * step / request.replaced)
    blocks = list(order[:step]) if order is not None else list(range(step))
    return parameter_count(compact_config(config, blocks, requested_sizes(config, request)))


def matched_parameters(
    config: PreTrainedConfig, request: SizeRequest, blocks: Sequence[int | None]
) -> int:
    """Count what the reference of a baseline has left, as its plan says.

    Args:
        config: the teacher's config.
        request: how large the reference's compact blocks shall be.
        blocks: those that the reference has replaced (None for one that it measures).

    Raises:
        UserError: sizes that do not fit, or a reduction out of reach.
    """
    return parameters_after(config, request, len(blocks))
