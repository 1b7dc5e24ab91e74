"""What a compact block looks like: recipes, and how they size themselves.

``paper``: projections around a small backbone with its own positions. ``bottleneck``: the same
without a position embedding, one layer, and any activation. ``narrow``: no projections, fewer
heads and a narrower MLP at full width, so no depth is added.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import (
    ChangedBlocks,
    CompactBlock,
    CompactSizes,
    NarrowSizes,
    narrow_block,
)

Recipe = Literal["paper", "bottleneck", "narrow"]
Sizes = CompactSizes | NarrowSizes


@dataclass(frozen=True)
class Shape:
    """The published code's proportions: width = hidden size / divisor, MLP = 4 times the width."""

    divisor: int
    heads: int
    blocks: int


# The paper covers two families; the others take GPT-2's proportions.
_PUBLISHED = {"gpt2": Shape(6, 2, 2), "phi": Shape(4, 1, 4)}


def published_shape(config: PreTrainedConfig) -> Shape:
    """Give the paper's proportions for a teacher's family."""
    return _PUBLISHED.get(family_of(config).name, _PUBLISHED["gpt2"])


def parameter_count(config: PreTrainedConfig) -> int:
    """Count the parameters of a config's model; tied weights count once, nothing is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def block_parameters(config: PreTrainedConfig, sizes: Sizes | None) -> int:
    """Count the parameters of one block: compact, narrow, or (None) the teacher's own."""
    adapter = family_of(config).adapter
    with torch.device("meta"):
        block: nn.Module
        if sizes is None:
            block = adapter.layer(config, layer_idx=0)
        elif isinstance(sizes, NarrowSizes):
            block = narrow_block(config, sizes, 0, adapter)
        else:
            block = CompactBlock(config, sizes, [0] * sizes.blocks, adapter)
    return sum(parameter.numel() for parameter in block.parameters())


_COMPACT_KEYS = ("width", "heads", "blocks", "mlp", "activation", "published")
_NARROW_KEYS = ("heads", "mlp")


def head_grain(config: PreTrainedConfig) -> int:
    """Give the number that an inner head size must be a multiple of.

    Rotary angles come in pairs, over the share of a head that the family rotates.
    """
    if family_of(config).adapter.rotary is None:
        return 1
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    share = rope.get("partial_rotary_factor", 1.0)
    return next((g for g in range(1, 257) if (g * share) % 2 == 0), 256)


def resolve_sizes(
    config: PreTrainedConfig,
    recipe: Recipe = "paper",
    sizes: Mapping[str, Any] | None = None,
    *,
    replaced: int = 1,
    reduction: float | None = None,
    parameters: int | None = None,
) -> Sizes:
    """Give the sizes of a recipe's block for one teacher.

    Args:
        config: the teacher's config.
        recipe: which kind of block.
        sizes: what is given: ``width``, ``heads``, ``blocks``, ``mlp``, ``activation`` and
            ``published`` (compact recipes), ``heads`` and ``mlp`` (narrow). What is left out
            is found: with ``reduction`` or ``parameters`` as large as that allows, otherwise in
            the paper's proportions.
        replaced: blocks that will be replaced, for ``reduction``.
        reduction: 1 - parameters / teacher's, of the whole model once they are.
        parameters: most parameters of one block.

    Raises:
        UserError: sizes that do not fit each other or the model, or a target out of reach.
    """
    given = {key: value for key, value in (sizes or {}).items() if value is not None}
    known = _NARROW_KEYS if recipe == "narrow" else _COMPACT_KEYS
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"sizes: recipe {recipe} has no {unknown[0]!r}; it has {', '.join(known)}")
    budget = parameters
    if reduction is not None:
        budget = _budget(config, replaced, reduction)
    if recipe == "narrow":
        return _narrow_sizes(config, given, budget)
    return _compact_sizes(config, recipe, given, budget)


def _budget(config: PreTrainedConfig, replaced: int, reduction: float) -> int:
    """Work out how large a replaced block may be for a target of the whole model."""
    block = block_parameters(config, None)
    changed = ChangedBlocks.of(config)
    # What blocks changed earlier have saved already counts: the reduction is the teacher's.
    earlier: list[Sizes] = [*changed.compact.values(), *changed.narrow.values()]
    saved = sum(block - block_parameters(config, sizes) for sizes in earlier)
    whole = parameter_count(config) + saved
    budget = block - math.ceil((whole * reduction - saved) / replaced)
    if budget <= 0:
        most = replaced * block / whole
        raise UserError(
            f"reduction {reduction:g} cannot be reached by replacing {replaced} blocks, which hold "
            f"{most:.1%} of the model; replace more blocks (steps, order) or ask for less"
        )
    return budget


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """Find the largest number from 0 to ``most`` that fits; what is above it does not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _compact_sizes(
    config: PreTrainedConfig, recipe: Recipe, given: dict[str, Any], budget: int | None
) -> CompactSizes:
    shape = published_shape(config)
    heads = given.get("heads", shape.heads)
    grain = heads * head_grain(config)
    blocks = given.get("blocks", shape.blocks if recipe == "paper" else 1)
    # A shorter inner position embedding would fail on the first text longer than that.
    learned = recipe == "paper" and family_of(config).adapter.rotary is None
    positions = config.max_position_embeddings if learned else 0
    activation = given.get("activation", "relu" if recipe == "paper" else "gelu")

    def sizes(width: int) -> CompactSizes:
        return CompactSizes(
            width=width,
            heads=heads,
            blocks=blocks,
            mlp=given.get("mlp", 4 * width),
            positions=positions,
            activation=activation,
            published=given.get("published", False),
        )

    if "width" in given:
        if given["width"] % grain:
            raise UserError(
                f"compact width {given['width']} with {heads} heads: this model needs a width "
                f"that is a multiple of {grain}"
            )
        return sizes(given["width"])
    if budget is None:
        return sizes(max(1, round(config.hidden_size / shape.divisor / grain)) * grain)
    found = _largest(
        lambda n: n == 0 or block_parameters(config, sizes(n * grain)) <= budget,
        4 * config.hidden_size // grain,
    )
    if found == 0:
        least = block_parameters(config, sizes(grain))
        raise UserError(
            f"recipe {recipe}: {budget} parameters per block are asked for, the smallest block "
            f"has {least}; replace more blocks (steps, order) or ask for less reduction"
        )
    return sizes(found * grain)


def _narrow_sizes(
    config: PreTrainedConfig, given: dict[str, Any], budget: int | None
) -> NarrowSizes:
    adapter = family_of(config).adapter
    share = adapter.sharing_heads(config)
    groups, neurons = config.num_attention_heads // share, adapter.mlp_neurons(config)
    heads, mlp = given.get("heads"), given.get("mlp")
    if heads is not None and (heads % share or not 0 < heads <= config.num_attention_heads):
        raise UserError(
            f"narrow heads {heads}: this model needs a multiple of {share}, "
            f"at most {config.num_attention_heads}"
        )
    if mlp is not None and not 0 < mlp <= neurons:
        raise UserError(f"narrow mlp {mlp}: this model has {neurons} neurons")
    if heads is not None and mlp is not None:
        return NarrowSizes(heads=heads, mlp=mlp)
    if budget is None:
        # As large as the paper's compact block would be.
        budget = block_parameters(config, _compact_sizes(config, "paper", {}, None))

    # Both counts are linear, so two blocks on the meta device give all others.
    one = block_parameters(config, NarrowSizes(share, 1))
    per_neuron = block_parameters(config, NarrowSizes(share, 2)) - one
    per_group = block_parameters(config, NarrowSizes(2 * share, 1)) - one if groups > 1 else 0
    best: tuple[tuple[bool, float], NarrowSizes] | None = None
    choices = range(1, groups + 1) if heads is None else range(heads // share, heads // share + 1)
    for kept in choices:
        most = 1 + (budget - one - (kept - 1) * per_group) // per_neuron
        if most < (mlp or 1):
            break
        if mlp is not None:
            # The neurons are given: as many heads stay as fit.
            order, own = (False, float(-kept)), mlp
        else:
            own = min(most, neurons)
            # Where the MLP is small beside the attention, whole heads may leave room unused.
            # Heads and neurons shrink in the same proportion, as far as whole heads allow.
            order = most > neurons, abs(kept / groups - own / neurons)
        if best is None or order < best[0]:
            best = order, NarrowSizes(heads=kept * share, mlp=own)
    if best is None:
        least = one + (choices[0] - 1) * per_group + ((mlp or 1) - 1) * per_neuron
        raise UserError(
            f"recipe narrow: {budget} parameters per block are asked for, the smallest block has "
            f"{least}; replace more blocks (steps, order) or ask for less reduction"
        )
    return best[1]
