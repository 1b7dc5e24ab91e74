"""What each step leaves of a model, worked out before anything is trained."""

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
    sizes = requested_sizes(config, request)
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
        "recipe": request.recipe,
        "sizes": asdict(sizes),
    }


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
    alike = list(range(len(blocks)))  # all blocks of a decoder are
    return parameter_count(compact_config(config, alike, requested_sizes(config, request)))
