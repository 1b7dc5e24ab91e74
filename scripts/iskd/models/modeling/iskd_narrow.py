"""Blocks that kept their shape and lost heads and neurons, or their attention or MLP altogether.

This file is part of a saved model and needs torch and transformers alone.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .iskd_adapter import Adapter, NarrowSizes


class NoAttention(nn.Module):
    """Stands where a block's attention was left out: writes nothing into the stream."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, None]:
        """Give zeros of the shape of ``hidden_states``, and no attention weights."""
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Stands where a block's MLP was left out: writes nothing into the stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Give zeros of the shape of ``hidden_states``."""
        return torch.zeros_like(hidden_states)


class NoBlock(GradientCheckpointingLayer):
    """Stands where a whole block was left out, so that the others keep their numbers."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Give ``hidden_states`` back."""
        return hidden_states


def narrow_block(config: Any, sizes: NarrowSizes, index: int, adapter: Adapter) -> nn.Module:
    """Build the library's block with fewer heads (of unchanged size) and MLP neurons, or none."""
    if not (sizes.heads or sizes.mlp):
        return NoBlock()
    share = adapter.sharing_heads(config)
    built = sizes.heads or share
    inner = copy.deepcopy(config)
    setattr(inner, adapter.mlp_width, sizes.mlp or 1)
    if adapter.resize_attention is None:
        heads = config.num_attention_heads
        inner.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        inner.num_key_value_heads = built // share
        inner.num_attention_heads = built
    block = adapter.layer(inner, layer_idx=index)
    attention = block.get_submodule(adapter.attention)
    attention.config = config
    if adapter.resize_attention is not None:
        adapter.resize_attention(attention, config, built)
    if adapter.fix_narrow_attention is not None:
        adapter.fix_narrow_attention(attention, config)
    _leave_out(block, sizes, adapter)
    return block


def _leave_out(block: nn.Module, sizes: NarrowSizes, adapter: Adapter) -> None:
    """Take the attention or the MLP out of a block that still has both."""
    attention_norm, mlp_norm = adapter.norms
    if not sizes.heads:
        block.set_submodule(adapter.attention, NoAttention())
    if not sizes.mlp:
        block.set_submodule(adapter.writers[1].split(".")[0], NoMLP())
    if attention_norm == mlp_norm:
        return
    for units, norm in ((sizes.heads, attention_norm), (sizes.mlp, mlp_norm)):
        if not units:
            block.set_submodule(norm, nn.Identity())
