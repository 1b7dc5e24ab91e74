"""Phi: rotary positions, attention and MLP side by side, separate projections."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PhiConfig, PhiForCausalLM
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.phi.modeling_phi import PhiDecoderLayer, PhiRotaryEmbedding

from iskd.models.sizes import ChangedBlocks, CompactSizes, NarrowSizes


class CompactPhiConfig(PhiConfig):
    """A Phi config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_phi"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None

    @property
    def per_layer_config(self) -> Any:
        """One config per KV-cache slot: the library sizes its caches by this."""
        own = list(super().per_layer_config)
        return own + [self] * ChangedBlocks.of(self).extra_slots()

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        PhiConfig.per_layer_config.fset(self, value)


class CompactPhiBlock(GradientCheckpointingLayer):
    """Down-projection, a small Phi backbone with its own rotary angles, up-projection, skip.

    Takes and gives hidden states of shape (batch, positions, hidden size).
    """

    def __init__(self, config: CompactPhiConfig, sizes: CompactSizes, slots: list[int]) -> None:
        super().__init__()
        inner = PhiConfig(
            vocab_size=config.vocab_size,
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp,
            num_hidden_layers=sizes.blocks,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads,
            hidden_act=config.hidden_act,
            max_position_embeddings=config.max_position_embeddings,
            rope_parameters=copy.deepcopy(config.rope_parameters),
            layer_norm_eps=config.layer_norm_eps,
            resid_pdrop=config.resid_pdrop,
            attention_dropout=config.attention_dropout,
            qk_layernorm=config.qk_layernorm,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.down = nn.Linear(config.hidden_size, sizes.width)
        self.activation = ACT2FN[sizes.activation]
        self.drop = nn.Dropout(config.embd_pdrop)
        self.rotary = PhiRotaryEmbedding(config=inner)
        self.blocks = nn.ModuleList()
        for slot in slots:
            block = PhiDecoderLayer(inner, layer_idx=slot)
            # As for GPT-2: the outer config decides on the attention kernel.
            block.self_attn.config = config
            self.blocks.append(block)
        self.norm = nn.LayerNorm(sizes.width, eps=config.layer_norm_eps)
        self.up = nn.Linear(sizes.width, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        position_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Give the block's output, same shape as ``hidden_states``."""
        del position_embeddings, kwargs  # the outer angles are for the outer head size
        inner = self.drop(self.activation(self.down(hidden_states)))
        angles = self.rotary(inner, position_ids=position_ids)
        for block in self.blocks:
            inner = block(
                inner,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=angles,
            )
        return hidden_states + self.up(self.norm(inner))


def narrow_phi_block(config: CompactPhiConfig, sizes: NarrowSizes, index: int) -> PhiDecoderLayer:
    """Build the library's block with fewer heads (of unchanged size) and MLP neurons."""
    inner = copy.deepcopy(config)
    inner.head_dim = config.hidden_size // config.num_attention_heads
    inner.num_attention_heads = sizes.heads
    inner.num_key_value_heads = sizes.heads
    inner.intermediate_size = sizes.mlp
    block = PhiDecoderLayer(inner, layer_idx=index)
    block.self_attn.config = config
    return block


class CompactPhiForCausalLM(PhiForCausalLM):
    """Phi whose config lists compact and narrow blocks; all else is the library's own class."""

    config_class = CompactPhiConfig

    def __init__(self, config: CompactPhiConfig) -> None:
        super().__init__(config)
        changed = ChangedBlocks.of(config)
        slots = changed.cache_slots(config.num_hidden_layers)
        for index, compact in changed.compact.items():
            self.model.layers[index] = CompactPhiBlock(config, compact, slots[index])
        for index, narrow in changed.narrow.items():
            self.model.layers[index] = narrow_phi_block(config, narrow, index)
        self.post_init()
