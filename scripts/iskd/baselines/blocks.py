"""Whole blocks of a teacher: how many fit a size, which are spread evenly, a model of some."""

import copy
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import ChangedBlocks
from iskd.models.recipes import block_parameters, parameter_count


def require_whole(config: PreTrainedConfig, what: str) -> None:
    """Check that a model has none but its family's own blocks.

    Args:
        config: the model's.
        what: who asks, for the message.

    Raises:
        UserError: it has compact or narrow blocks.
    """
    changed = ChangedBlocks.of(config)
    if changed.compact or changed.narrow:
        raise UserError(f"the model is compressed already: {what} starts from a whole teacher")


def fitting_blocks(config: PreTrainedConfig, parameters: int) -> int:
    """Give the largest number of the teacher's blocks, at most all, that fit ``parameters``.

    Embeddings, final norm and head count too.

    Raises:
        UserError: not even one block fits.
    """
    block = block_parameters(config, None)
    outside = parameter_count(config) - config.num_hidden_layers * block
    fitting = (parameters - outside) // block
    if fitting < 1:
        raise UserError(
            f"a student of {parameters} parameters is asked for, but one block of the teacher with "
            f"its embeddings and head has {outside + block}: give the student a shape of its own, "
            "or compare at an earlier step"
        )
    return int(min(fitting, config.num_hidden_layers))


def spread(count: int, blocks: int) -> list[int]:
    """Spread ``count`` places evenly over ``blocks`` blocks, from the first to the last.

    These are rounded linspace, halves up; a single place is the first block. 6 of 12 are those
    that DistilGPT2 takes from GPT-2: 0, 2, 4, 7, 9, 11.
    """
    if count == 1:
        return [0]
    # In whole numbers: a rounding error of a float must not move a block.
    gaps = count - 1
    return [(2 * i * (blocks - 1) + gaps) // (2 * gaps) for i in range(count)]


def kept_config(config: PreTrainedConfig, indices: Sequence[int]) -> PreTrainedConfig:
    """Give the config of a whole model that has only the named blocks, in the order given."""
    kept = copy.deepcopy(config)
    kept.num_hidden_layers = len(indices)
    types = getattr(config, "layer_types", None)
    if types is not None:
        # A block with a sliding window keeps it in its new place.
        kept.layer_types = [types[i] for i in indices]
    return kept


def keep_blocks(model: PreTrainedModel, indices: Sequence[int]) -> PreTrainedModel:
    """Give a plain model of the family that has only some blocks of a whole one.

    Its logits are those of ``model`` with the other blocks skipped. Embeddings, final norm and
    head are copied; what is tied stays tied.

    Args:
        model: left as it is.
        indices: the blocks to keep, in their new order.

    Raises:
        UserError: no block, one that does not exist, one named twice, or a compressed model.
    """
    family, total = family_of(model.config), model.config.num_hidden_layers
    require_whole(model.config, "keeping some of its blocks")
    if not indices:
        raise UserError("no block is kept: keep at least one")
    for place, index in enumerate(indices):
        if not 0 <= index < total:
            raise UserError(f"block {index} does not exist: the model has blocks 0 to {total - 1}")
        if index in indices[:place]:
            raise UserError(f"block {index} is named twice: it can be kept only once")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        kept = AutoModelForCausalLM.from_config(
            kept_config(model.config, indices),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
        )
    path = family.adapter.blocks_path
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(f"{path}.")}
    old = family.blocks(model)
    for place, index in enumerate(indices):
        for name, value in old[index].state_dict().items():
            state[f"{path}.{place}.{name}"] = value
    kept.load_state_dict(state)
    if getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        _scale_by_old_places(kept, indices)
    kept.generation_config = copy.deepcopy(model.generation_config)
    return kept.to(model.device).train(model.training)


@torch.no_grad()
def _scale_by_old_places(model: PreTrainedModel, indices: Sequence[int]) -> None:
    """Make up for the block numbers by which this kind of GPT-2 divides its attention scores."""
    for place, block in enumerate(family_of(model.config).blocks(model)):
        queries = model.config.hidden_size
        factor = (place + 1) / (indices[place] + 1)
        block.get_parameter("attn.c_attn.weight")[:, :queries] *= factor
        block.get_parameter("attn.c_attn.bias")[:queries] *= factor
