"""GPT-2: learned positions, one fused projection for queries, keys and values."""

import math
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from .iskd_blocks import (
    Adapter,
    CompactBlock,
    CompactConfigMixin,
    CompactModelMixin,
    Cut,
    register_for_folders,
)


def _norm(config: Any, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=config.layer_norm_epsilon)


def _resize_attention(attention: nn.Module, config: Any, heads: int) -> None:
    width = heads * (config.hidden_size // config.num_attention_heads)
    attention.num_heads = heads  # type: ignore[assignment]
    attention.split_size = width
    attention.c_attn = Conv1D(3 * width, config.n_embd)
    attention.c_proj = Conv1D(config.n_embd, width)


def _start_residuals_small(block: CompactBlock, config: Any) -> None:
    """Draw what writes into the inner stream by GPT-2's scheme, for the backbone's own depth.

    The library's ``post_init`` leaves this step out for classes that are not its own.
    """
    std = config.initializer_range / math.sqrt(2 * len(block.blocks))
    for layer in block.blocks:
        for name in ("attn", "mlp"):
            nn.init.normal_(layer.get_parameter(f"{name}.c_proj.weight"), mean=0.0, std=std)


def _publish(block: CompactBlock) -> None:
    """Attend evenly to the past whenever the outer model was given a mask.

    The published code hands the outer additive mask to the inner backbone, which takes it for
    a 0/1 mask: every score drowns in the same large negative number.
    """

    def silence(_: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        del args
        if block.given_mask is None:
            return None
        queries, rest = output.tensor_split([output.shape[-1] // 3], dim=-1)
        return torch.cat([queries.detach() * 0, rest], dim=-1)

    for layer in block.blocks:
        layer.get_submodule("attn.c_attn").register_forward_hook(silence)


class CompactGPT2Config(CompactConfigMixin, GPT2Config):
    """A GPT-2 config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_gpt2"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None


class CompactGPT2LMHeadModel(CompactModelMixin, GPT2LMHeadModel):
    """GPT-2 whose config lists compact and narrow blocks; all else is the library's own class."""

    config_class = CompactGPT2Config
    adapter = Adapter(
        name="gpt2",
        layer=GPT2Block,
        blocks_path="transformer.h",
        attention="attn",
        norm=_norm,
        mlp_width="n_inner",
        head_cuts=(
            Cut("attn.c_attn.weight", 1, parts=3),
            Cut("attn.c_attn.bias", 0, parts=3),
            Cut("attn.c_proj.weight", 0),
        ),
        neuron_cuts=(
            Cut("mlp.c_fc.weight", 1),
            Cut("mlp.c_fc.bias", 0),
            Cut("mlp.c_proj.weight", 0),
        ),
        writers=("attn.c_proj", "mlp.c_proj"),
        norms=("ln_1", "ln_2"),
        positional=("past_key_values", "attention_mask", "encoder_hidden_states"),
        dropout="embd_pdrop",
        resize_attention=_resize_attention,
        after_init=_start_residuals_small,
        publish=_publish,
    )


register_for_folders(CompactGPT2Config, CompactGPT2LMHeadModel)
