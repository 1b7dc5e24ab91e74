"""A model whose blocks are all alike as the library's own class, without code in its folder."""

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import ChangedBlocks, NarrowSizes
from iskd.models.substitution import block_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# What belongs to the class that a config is of, not to the model.
_OF_THE_CLASS = (
    *("model_type", "architectures", "transformers_version", "auto_map"),
    *("compact_blocks", "narrow_blocks"),
)


def plain_config(config: "PreTrainedConfig", where: str) -> tuple["PreTrainedConfig", list[int]]:
    """Give the config of the library's own class for a model whose blocks are all alike.

    Args:
        config: the model's. Blocks that were left out altogether do not count; the others are
            whole, or all narrowed to the same sizes.
        where: the model's folder, for messages.

    Returns:
        the config, and the model's block that each of its blocks is

    Raises:
        UserError: the blocks differ, or the library's class has no such sizes.
    """
    family, changed = family_of(config), ChangedBlocks.of(config)
    if changed.compact:
        raise UserError(
            f"{where}: block {min(changed.compact)} is compact, and the library's own class has no "
            "such block; use the folder as it is, with its code"
        )
    sizes = {index: block_sizes(config, index) for index in range(config.num_hidden_layers)}
    kept = {index: size for index, size in sizes.items() if size.heads or size.mlp}
    size = kept[min(kept)]
    for index, other in kept.items():
        if other != size:
            raise UserError(
                f"{where}: block {index} has {other.heads} heads and {other.mlp} neurons and block "
                f"{min(kept)} has {size.heads} and {size.mlp}, and the library's own class has one "
                "size for all; use the folder as it is, with its code"
            )
    values = {k: v for k, v in config.to_dict().items() if k not in _OF_THE_CLASS}
    if values.get("layer_types") is not None:
        values["layer_types"] = [values["layer_types"][index] for index in kept]
    moved = list(kept) != list(range(len(kept)))
    if moved and values.get("scale_attn_by_inverse_layer_idx"):
        raise UserError(
            f"{where}: its attention is scaled by the number of the block, and without those that "
            "were left out the numbers change; use the folder as it is"
        )
    if size != NarrowSizes(config.num_attention_heads, family.adapter.mlp_neurons(config)):
        if family.adapter.resize_attention is not None or not (size.heads and size.mlp):
            raise UserError(
                f"{where}: all blocks were narrowed to {size.heads} heads and {size.mlp} neurons, "
                f"and the library's {family.name} has no such blocks; use the folder as it is"
            )
        heads = config.num_attention_heads
        values["head_dim"] = getattr(config, "head_dim", None) or config.hidden_size // heads
        values["num_attention_heads"] = size.heads
        values["num_key_value_heads"] = size.heads // family.adapter.sharing_heads(config)
        values[family.adapter.mlp_width] = size.mlp
    values["num_hidden_layers"] = len(kept)
    return family.config(**values), list(kept)


def plain_model(model: "PreTrainedModel", where: str) -> "PreTrainedModel":
    """Give a model of the library's own class with the same logits.

    Args:
        model: its blocks are alike, or left out; left as it is.
        where: the model's folder, for messages.

    Raises:
        UserError: as :func:`plain_config`.
    """
    config, kept = plain_config(model.config, where)
    path = family_of(config).adapter.blocks_path
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        plain = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    state = {}
    places = {f"{path}.{index}.": f"{path}.{place}." for place, index in enumerate(kept)}
    for name, value in model.state_dict().items():
        start = next((old for old in places if name.startswith(old)), None)
        if start is not None:
            state[places[start] + name.removeprefix(start)] = value
        elif not name.startswith(f"{path}."):
            state[name] = value
    plain.load_state_dict(state)
    plain.generation_config = model.generation_config
    return plain.to(model.device).train(model.training)
