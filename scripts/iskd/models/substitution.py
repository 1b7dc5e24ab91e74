"""Swap one block of a model for a compact one, and count what is left."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.sizes import ChangedBlocks, CompactSizes, NarrowSizes

Initialisation = Literal["xavier", "family"]


def _changed_config(teacher: PreTrainedConfig, changed: ChangedBlocks) -> PreTrainedConfig:
    family = family_of(teacher)
    values = teacher.to_dict()
    for key in ("model_type", "architectures", "transformers_version", "dtype"):
        values.pop(key, None)
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


def compact_config(
    config: PreTrainedConfig, blocks: Sequence[int], sizes: CompactSizes
) -> PreTrainedConfig:
    """Give the config of ``config``'s model with ``blocks`` replaced by compact ones.

    ``config`` may be a teacher's or one that already has compact blocks; those stay.

    Raises:
        UserError: a block that does not exist, twice the same block, or one replaced already.
    """
    changed = ChangedBlocks.of(config)
    _check_indices(config, [*changed.compact, *blocks])
    narrow = {index: left for index, left in changed.narrow.items() if index not in blocks}
    return _changed_config(
        config, ChangedBlocks({**changed.compact, **dict.fromkeys(blocks, sizes)}, narrow)
    )


def narrow_config(config: PreTrainedConfig, sizes: Mapping[int, NarrowSizes]) -> PreTrainedConfig:
    """Give the config of ``config``'s model with the named blocks narrowed to ``sizes``.

    Raises:
        UserError: a block that does not exist, or one that is compact.
    """
    changed = ChangedBlocks.of(config)
    _check_indices(config, [*changed.compact, *sizes])
    return _changed_config(
        config, ChangedBlocks(changed.compact, {**changed.narrow, **dict(sizes)})
    )


def parameter_count(config: PreTrainedConfig) -> int:
    """Count the parameters of a config's model; tied weights count once, nothing is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def replace_block(
    model: PreTrainedModel,
    index: int,
    sizes: CompactSizes,
    initialisation: Initialisation,
    seed: int,
) -> tuple[PreTrainedModel, nn.Module]:
    """Swap block ``index`` for a freshly initialised compact one; all other weights are kept.

    ``xavier`` draws both projections from Xavier's uniform distribution with zero biases and
    leaves the inner backbone to the family's default; ``family`` uses the family's default
    throughout. These are what the published code does for GPT-2 and for Phi.

    Returns:
        the new model, and its new block

    Raises:
        UserError: the block does not exist or is compact already.
    """
    config = compact_config(model.config, [index], sizes)
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        new = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
        family = family_of(config)
        block = family.blocks(new)[index]
        if initialisation == "xavier":
            for name in ("down", "up"):
                projection = block.get_submodule(name)
                assert isinstance(projection, nn.Linear)  # noqa: S101 - narrows the type
                nn.init.xavier_uniform_(projection.weight)
                nn.init.zeros_(projection.bias)
    own = f"{family.blocks_path}.{index}."
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith(own)}
    missing, unexpected = new.load_state_dict(kept, strict=False)
    strangers = [name for name in missing if not name.startswith(own)] + list(unexpected)
    if strangers:
        raise RuntimeError(f"weights without a place after the substitution: {strangers}")
    new.generation_config = model.generation_config
    return new.to(model.device).train(model.training), block
