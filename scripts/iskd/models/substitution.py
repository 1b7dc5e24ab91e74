"""Swap blocks of a model for compact ones, and say so in its config."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iskd.errors import UserError
from iskd.models.activations import BlockCall
from iskd.models.families import family_of
from iskd.models.initialisation import initialise_compact, initialise_narrow
from iskd.models.modeling.iskd_blocks import (
    ChangedBlocks,
    CompactBlock,
    CompactSizes,
    NarrowSizes,
    narrow_block,
)
from iskd.models.recipes import Recipe, Sizes, resolve_sizes
from iskd.settings import Initialisation

# One factor for each pair of a head's numbers.
_SIZED_ROTARY = ("longrope",)


def _changed_config(teacher: PreTrainedConfig, changed: ChangedBlocks) -> PreTrainedConfig:
    family = family_of(teacher)
    values = teacher.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "dtype", "auto_map"):
        values.pop(key, None)
    if values.get("layer_types") is not None:
        # Entries for cache slots beyond the outer blocks are made anew.
        values["layer_types"] = values["layer_types"][: teacher.num_hidden_layers]
    config = family.compact_config(**{**values, **changed.entries()})
    config.architectures = [family.compact_model.__name__]
    config.dtype = teacher.dtype
    return config


def _check_indices(config: PreTrainedConfig, indices: Sequence[int]) -> None:
    missing = [index for index in indices if not 0 <= index < config.num_hidden_layers]
    if missing:
        raise UserError(
            f"block {missing[0]} does not exist: the model has blocks 0 to "
            f"{config.num_hidden_layers - 1}"
        )
    if len(set(indices)) != len(indices):
        raise UserError("the same block is named twice: a block can be replaced only once")


def _check_rotary(config: PreTrainedConfig) -> None:
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind in _SIZED_ROTARY:
        raise UserError(
            f"rope_type {kind}: its factors belong to the model's own head size, so a smaller "
            f"block cannot be made for it"
        )


def compact_config(
    config: PreTrainedConfig,
    blocks: Sequence[int],
    sizes: Sizes | Mapping[str, Any] | None = None,
    *,
    recipe: Recipe = "paper",
    reduction: float | None = None,
) -> PreTrainedConfig:
    """Give the config of ``config``'s model with ``blocks`` replaced.

    ``AutoModelForCausalLM.from_config`` builds the model from it, on the meta device too.

    Args:
        config: a teacher's, or one that already has compact blocks; those stay.
        blocks: indices of the blocks to replace.
        sizes: sizes of the new blocks, all or some of them; left out, the recipe sizes itself:
            to ``reduction``, or in the paper's proportions.
        recipe: ``paper``, ``bottleneck`` or ``narrow``.
        reduction: 1 - parameters / teacher's once these blocks are replaced.

    Raises:
        UserError: a block that does not exist, twice the same block, one replaced already, sizes
            that do not fit, a reduction out of reach, a family that was not published, or rotary
            angles that no smaller head can have.
    """
    changed = ChangedBlocks.of(config)
    _check_indices(config, [*changed.compact, *blocks])
    _check_rotary(config)
    narrow = {index: left for index, left in changed.narrow.items() if index not in blocks}
    if not isinstance(sizes, CompactSizes | NarrowSizes):
        # Narrow blocks that go now save nothing any more.
        left = ChangedBlocks(changed.compact, narrow)
        rest = _changed_config(config, left) if changed.narrow else config
        sizes = resolve_sizes(
            rest, recipe, sizes, replaced=max(1, len(blocks)), reduction=reduction
        )
    if isinstance(sizes, NarrowSizes):
        return narrow_config(config, dict.fromkeys(blocks, sizes))
    family = family_of(config)
    if sizes.published and family.adapter.publish is None:
        raise UserError(
            f"the published code has no family {family.name}: only gpt2 and phi can be as published"
        )
    return _changed_config(
        config, ChangedBlocks({**changed.compact, **dict.fromkeys(blocks, sizes)}, narrow)
    )


def narrow_config(config: PreTrainedConfig, sizes: Mapping[int, NarrowSizes]) -> PreTrainedConfig:
    """Give the config of ``config``'s model with the named blocks narrowed to ``sizes``.

    Raises:
        UserError: a block that does not exist or was replaced already, or sizes that no block of
            the family can have.
    """
    changed = ChangedBlocks.of(config)
    _check_indices(config, [*changed.compact, *changed.narrow, *sizes])
    return shrunk_config(config, sizes)


def shrunk_config(config: PreTrainedConfig, sizes: Mapping[int, NarrowSizes]) -> PreTrainedConfig:
    """Give the config of ``config``'s model with whole or narrow blocks made as small as ``sizes``.

    Raises:
        UserError: a block that does not exist or is compact, or sizes that it cannot have: heads
            that would part from the key they share, no attention in the first block of its kind,
            or more than it has now.
    """
    changed = ChangedBlocks.of(config)
    _check_indices(config, [*changed.compact, *sizes])
    share = family_of(config).adapter.sharing_heads(config)
    for index, size in sizes.items():
        if size.heads < 0 or size.heads % share:
            raise UserError(
                f"block {index} shall keep {size.heads} heads: {share} of this model's share a "
                f"key, so it takes a multiple of {share}"
            )
        if not size.heads and index in first_blocks(config):
            raise UserError(
                f"block {index} shall lose its attention: the first block of its kind keeps it, as "
                f"the library reads there how long the cached text is"
            )
        now = block_sizes(config, index)
        if size.heads > now.heads or size.mlp > now.mlp:
            raise UserError(
                f"block {index} shall have {size.heads} heads and {size.mlp} neurons: it has "
                f"{now.heads} and {now.mlp}"
            )
    return _changed_config(
        config, ChangedBlocks(changed.compact, {**changed.narrow, **dict(sizes)})
    )


def first_blocks(config: PreTrainedConfig) -> set[int]:
    """Give the first block of each kind of attention; their cache tells how long the text is."""
    types = (getattr(config, "layer_types", None) or [])[: config.num_hidden_layers]
    return {types.index(kind) for kind in set(types)} or {0}


def block_sizes(config: PreTrainedConfig, index: int) -> NarrowSizes:
    """Give the heads and MLP neurons of a block that is whole or narrow."""
    whole = NarrowSizes(config.num_attention_heads, family_of(config).adapter.mlp_neurons(config))
    return ChangedBlocks.of(config).narrow.get(index, whole)


def replace_block(
    model: PreTrainedModel,
    index: int,
    sizes: Sizes,
    initialisation: Initialisation,
    seed: int,
    *,
    calls: Sequence[BlockCall] = (),
) -> tuple[PreTrainedModel, nn.Module]:
    """Swap block ``index`` for a new one; all other weights are kept.

    Args:
        model: the model as it is; left alone.
        index: the block.
        sizes: of the new block; their class decides whether it is compact or narrow.
        initialisation: how it starts (see :mod:`iskd.models.initialisation`).
        seed: seed of what is drawn.
        calls: what the teacher's block was handed and gave, for kinds that need it.

    Returns:
        the new model, and its new block

    Raises:
        UserError: the block does not exist or is compact already, or cannot start so.
    """
    new, blocks = replace_blocks(model, {index: sizes}, initialisation, seed, calls={index: calls})
    return new, blocks[index]


def trial_block(
    model: PreTrainedModel,
    index: int,
    sizes: Sizes,
    initialisation: Initialisation,
    seed: int,
    *,
    calls: Sequence[BlockCall] = (),
) -> nn.Module:
    """Make a block that could stand for block ``index``, without a model around it.

    What is drawn at random is drawn from the same distributions as by :func:`replace_block`, but
    is not the same; what is fitted to the replaced block, or taken from it, is.

    Args:
        model: the model as it is; left alone.
        index: the block that it could stand for.
        sizes: of the new block; their class decides whether it is compact or narrow.
        initialisation: how it starts (see :mod:`iskd.models.initialisation`).
        seed: seed of what is drawn.
        calls: what the teacher's block was handed and gave, for kinds that need it.

    Raises:
        UserError: the block does not exist or is compact already, or cannot start so.
    """
    config = compact_config(model.config, [index], sizes)
    config._attn_implementation = model.config._attn_implementation
    adapter = family_of(config).adapter
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        block: nn.Module
        if isinstance(sizes, NarrowSizes):
            block = narrow_block(config, sizes, index, adapter)
        else:
            slots = ChangedBlocks.of(config).cache_slots(config.num_hidden_layers)
            block = CompactBlock(config, sizes, slots[index], adapter)
        block.apply(model._init_weights)
        if adapter.after_init is not None and isinstance(block, CompactBlock):
            adapter.after_init(block, config)
        block.to(model.device, model.dtype)
        old = adapter.blocks(model)[index]
        _initialise(block, sizes, initialisation, config=model.config, old=old, calls=calls)
    return block


def _initialise(
    block: nn.Module,
    sizes: Sizes,
    initialisation: Initialisation,
    *,
    config: PreTrainedConfig,
    old: nn.Module,
    calls: Sequence[BlockCall],
) -> None:
    if isinstance(sizes, NarrowSizes):
        initialise_narrow(block, sizes, initialisation, config, replaced=old, calls=calls)
    else:
        assert isinstance(block, CompactBlock)  # noqa: S101 - narrows the type
        initialise_compact(block, initialisation, config, calls=calls)


def replace_blocks(
    model: PreTrainedModel,
    sizes: Mapping[int, Sizes],
    initialisation: Initialisation,
    seed: int,
    *,
    calls: Mapping[int, Sequence[BlockCall]] | None = None,
) -> tuple[PreTrainedModel, dict[int, nn.Module]]:
    """Swap several blocks at once; otherwise as :func:`replace_block`.

    Returns:
        the new model, and its new blocks by index

    Raises:
        RuntimeError: a weight of the old model has no place in the new one.
    """
    config = model.config
    for index, size in sizes.items():
        config = compact_config(config, [index], size)
    family = family_of(config)
    old = family.blocks(model)
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        new = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
        # Before anything is fitted: activations come from where the model is.
        new = new.to(model.device)
        blocks = {index: family.blocks(new)[index] for index in sizes}
        for index, block in blocks.items():
            known = (calls or {}).get(index, ())
            _initialise(
                block,
                sizes[index],
                initialisation,
                config=model.config,
                old=old[index],
                calls=known,
            )
    own = tuple(f"{family.adapter.blocks_path}.{index}." for index in sizes)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(own)}
    missing, unexpected = new.load_state_dict(kept, strict=False)
    strangers = [name for name in missing if not name.startswith(own)] + list(unexpected)
    if strangers:
        raise RuntimeError(f"weights without a place after the substitution: {strangers}")
    new.generation_config = model.generation_config
    return new.train(model.training), blocks


def settle_blocks(
    model: PreTrainedModel, sizes: Mapping[int, NarrowSizes]
) -> tuple[PreTrainedModel, dict[int, nn.Module]]:
    """Make a model of its own out of one some of whose blocks were swapped in place.

    Args:
        model: its blocks fit ``sizes``, its config does not know of them yet; left as it is.
        sizes: of the swapped blocks, by index.

    Returns:
        the new model, and its blocks by index

    Raises:
        UserError: as :func:`shrunk_config`.
    """
    config = shrunk_config(model.config, sizes)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        new = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    new = new.to(model.device)
    new.load_state_dict(model.state_dict())
    new.generation_config = model.generation_config
    blocks = family_of(config).blocks(new)
    return new.train(model.training), {index: blocks[index] for index in sizes}
