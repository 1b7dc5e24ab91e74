"""Layer drop: the blocks that change their input least are left out, nothing takes their place."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from iskd.baselines.blocks import keep_blocks, require_whole
from iskd.errors import UserError
from iskd.models.activations import all_calls
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import NarrowSizes
from iskd.models.recipes import block_parameters, resolve_sizes
from iskd.models.substitution import replace_block


def block_influence(model: PreTrainedModel, ids: torch.Tensor, batch_size: int) -> list[float]:
    """Measure how much each block turns its input: ShortGPT's block influence.

    One minus the cosine of a block's input and output, mean over all tokens ("Block Influence" of
    arXiv 2403.03853), so 0 for a block that only scales its input and 2 for one that turns it
    round.
    Computed in float64, whatever the model's precision.

    Args:
        model: a decoder of a known family; left as it is.
        ids: tokens without padding, (sequences, positions).
        batch_size: sequences that go through the model together.

    Returns:
        one number per block, first block first
    """
    count = model.config.num_hidden_layers
    totals = [0.0] * count
    for calls in all_calls(model, range(count), ids, batch_size):
        for index, call in calls.items():
            cosine = torch.cosine_similarity(call.hidden.double(), call.output.double(), dim=-1)
            totals[index] += float((1 - cosine).sum())
    return [total / ids.numel() for total in totals]


def drop_layers(
    model: PreTrainedModel,
    influence: Sequence[float],
    *,
    count: int | None = None,
    parameters: int | None = None,
    first: Sequence[int] = (),
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Leave out the blocks of lowest influence; the lower index goes first where two are equal.

    Args:
        model: a whole teacher; left as it is.
        influence: of :func:`block_influence`.
        count: how many blocks go.
        first: blocks that go before all others, in this order, whatever their influence.
        parameters: most parameters of the model that is left. The last block that would have to
            go for this is not dropped but narrowed: it keeps its strongest heads and neurons, as
            many as there is room for, so that the target is met to within one MLP neuron. It goes
            altogether where the room is less than one head and one neuron.

    Returns:
        the smaller model, and what is to be recorded of it: ``influence``, ``dropped`` (in the
        order of going), ``narrowed`` (``block``, ``heads``, ``mlp``; or None) and ``parameters``.
        All blocks by the teacher's count

    Raises:
        UserError: a target that leaves no block, influence that is not a number, or a model that
            is compressed already.
        ValueError: neither or both of ``count`` and ``parameters``, or influence of another model.
    """
    require_whole(model.config, "layer drop")
    total = model.config.num_hidden_layers
    if (count is None) == (parameters is None):
        raise ValueError("give either count or parameters")
    if len(influence) != total:
        raise ValueError(f"influence of {len(influence)} blocks for a model that has {total}")
    if not all(math.isfinite(value) for value in influence):
        raise UserError(
            "the influence of a block is not a number: the teacher's hidden states overflow; "
            "use float32"
        )
    others = [index for index in range(total) if index not in first]
    order = [*first, *sorted(others, key=lambda index: (influence[index], index))]
    sizes = None
    if parameters is not None:
        count, sizes = _within(model, parameters)
    assert count is not None  # noqa: S101 - narrows the type
    if not 0 <= count < total:
        raise UserError(
            f"{count} blocks are to be dropped, but the model has {total}: at least one must stay"
        )
    dropped = order[:count]
    kept = sorted(set(range(total)) - set(dropped))
    smaller, narrowed = keep_blocks(model, kept), None
    if sizes is not None:
        block = order[count]
        narrowed = {"block": block, "heads": sizes.heads, "mlp": sizes.mlp}
        # Nothing is drawn that stays, so the seed does not matter.
        smaller, _ = replace_block(smaller, kept.index(block), sizes, "teacher", seed=0)
    return smaller, {
        "influence": list(influence),
        "dropped": dropped,
        "narrowed": narrowed,
        "parameters": sum(parameter.numel() for parameter in smaller.parameters()),
    }


def _within(model: PreTrainedModel, parameters: int) -> tuple[int, NarrowSizes | None]:
    """Give how many blocks go for a target, and the sizes of one more that is narrowed."""
    config, adapter = model.config, family_of(model.config).adapter
    whole = sum(parameter.numel() for parameter in model.parameters())
    block, total = block_parameters(config, None), config.num_hidden_layers
    # The narrow block with one unit of each kind.
    least = block_parameters(config, NarrowSizes(adapter.sharing_heads(config), 1))
    if whole <= parameters:
        return 0, None
    if whole - total * block + least > parameters:
        raise UserError(
            f"{parameters} parameters cannot be reached by dropping blocks: the smallest model has "
            f"{whole - total * block + least}; compare at an earlier step"
        )
    going = -(-(whole - parameters) // block)
    # Without all of these there is this much left for the last of them; less than a whole block.
    room = parameters - (whole - going * block)
    if room < least:
        return going, None
    sizes = resolve_sizes(config, "narrow", parameters=room)
    assert isinstance(sizes, NarrowSizes)  # noqa: S101 - narrows the type
    return going - 1, sizes
