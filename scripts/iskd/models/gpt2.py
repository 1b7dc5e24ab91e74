"""GPT-2: learned positions, one fused projection for queries, keys and values."""

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from iskd.models.sizes import ChangedBlocks, CompactSizes, NarrowSizes


class CompactGPT2Config(GPT2Config):
    """A GPT-2 config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_gpt2"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None

    @property
    def per_layer_config(self) -> Any:
        """One config per KV-cache slot: the library sizes its caches by this."""
        own = list(super().per_layer_config)
        return own + [self] * ChangedBlocks.of(self).extra_slots()

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        GPT2Config.per_layer_config.fset(self, value)


class CompactGPT2Block(GradientCheckpointingLayer):
    """Down-projection, a small GPT-2 backbone, up-projection, plus the block's input.

    Takes and gives hidden states of shape (batch, positions, hidden size). The backbone has its
    own position embedding and final norm but no token embedding (the paper's published code).
    Its layers get the outer model's causal mask, which has no head dimension of its own and so
    fits any number of heads.
    """

    def __init__(self, config: CompactGPT2Config, sizes: CompactSizes, slots: list[int]) -> None:
        super().__init__()
        inner = GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=sizes.positions,
            n_embd=sizes.width,
            n_layer=sizes.blocks,
            n_head=sizes.heads,
            n_inner=sizes.mlp,
            activation_function=config.activation_function,
            resid_pdrop=config.resid_pdrop,
            attn_pdrop=config.attn_pdrop,
            layer_norm_epsilon=config.layer_norm_epsilon,
            scale_attn_weights=config.scale_attn_weights,
            reorder_and_upcast_attn=config.reorder_and_upcast_attn,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.down = nn.Linear(config.n_embd, sizes.width)
        self.activation = ACT2FN[sizes.activation]
        self.positions = nn.Embedding(sizes.positions, sizes.width)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList()
        for slot in slots:
            block = GPT2Block(inner, layer_idx=slot)
            # The attention asks its config for the kernel to use; the outer config is the one
            # that `set_attn_implementation` changes.
            block.attn.config = config
            self.blocks.append(block)
        self.norm = nn.LayerNorm(sizes.width, eps=config.layer_norm_epsilon)
        self.up = nn.Linear(sizes.width, config.n_embd)

    def start_residuals_small(self, initializer_range: float) -> None:
        """Draw what writes into the inner stream by GPT-2's scheme, for the backbone's own depth.

        The library's ``post_init`` leaves this step out for classes that are not its own.
        """
        std = initializer_range / math.sqrt(2 * len(self.blocks))
        for block in self.blocks:
            for name in ("attn", "mlp"):
                nn.init.normal_(block.get_parameter(f"{name}.c_proj.weight"), mean=0.0, std=std)

    def forward(
        self,
        hidden_states: torch.Tensor,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        *,
        position_ids: torch.Tensor,
        use_cache: bool | None = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Give the block's output, same shape as ``hidden_states``."""
        del encoder_hidden_states, kwargs  # a decoder-only model has no encoder to attend to
        inner = self.activation(self.down(hidden_states))
        inner = self.drop(inner + self.positions(position_ids))
        for block in self.blocks:
            inner = block(
                inner,
                past_key_values,
                attention_mask,
                use_cache=use_cache,
                position_ids=position_ids,
            )
        return hidden_states + self.up(self.norm(inner))


def narrow_gpt2_block(config: CompactGPT2Config, sizes: NarrowSizes, index: int) -> GPT2Block:
    """Build the library's block with fewer heads (of unchanged size) and MLP neurons."""
    inner = copy.deepcopy(config)
    inner.n_inner = sizes.mlp
    block = GPT2Block(inner, layer_idx=index)
    attention = block.attn
    attention.config = config
    attention.num_heads = sizes.heads
    attention.split_size = sizes.heads * attention.head_dim
    attention.c_attn = Conv1D(3 * attention.split_size, config.n_embd)
    attention.c_proj = Conv1D(config.n_embd, attention.split_size)
    return block


class CompactGPT2LMHeadModel(GPT2LMHeadModel):
    """GPT-2 whose config lists compact and narrow blocks; all else is the library's own class."""

    config_class = CompactGPT2Config

    def __init__(self, config: CompactGPT2Config) -> None:
        super().__init__(config)
        changed = ChangedBlocks.of(config)
        slots = changed.cache_slots(config.n_layer)
        for index, compact in changed.compact.items():
            self.transformer.h[index] = CompactGPT2Block(config, compact, slots[index])
        for index, narrow in changed.narrow.items():
            self.transformer.h[index] = narrow_gpt2_block(config, narrow, index)
        self.post_init()
        for index in changed.compact:
            self.transformer.h[index].start_residuals_small(config.initializer_range)
