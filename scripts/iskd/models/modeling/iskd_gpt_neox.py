"""GPT-NeoX (Pythia): rotary positions, a fused projection with each head's parts together."""

from typing import Any

from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXLayer,
    GPTNeoXRotaryEmbedding,
)

from .iskd_blocks import (
    Adapter,
    CompactConfigMixin,
    CompactModelMixin,
    Cut,
    register_for_folders,
)


def _norm(config: Any, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=config.layer_norm_eps)


def _resize_attention(attention: nn.Module, config: Any, heads: int) -> None:
    own = heads * (config.hidden_size // config.num_attention_heads)
    bias = config.attention_bias
    attention.query_key_value = nn.Linear(config.hidden_size, 3 * own, bias=bias)
    attention.dense = nn.Linear(own, config.hidden_size, bias=bias)


class CompactGPTNeoXConfig(CompactConfigMixin, GPTNeoXConfig):
    """A GPT-NeoX config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_gpt_neox"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None


class CompactGPTNeoXForCausalLM(CompactModelMixin, GPTNeoXForCausalLM):
    """GPT-NeoX whose config lists changed blocks; all else is the library's own class."""

    config_class = CompactGPTNeoXConfig
    adapter = Adapter(
        name="gpt_neox",
        layer=GPTNeoXLayer,
        blocks_path="gpt_neox.layers",
        attention="attention",
        norm=_norm,
        mlp_width="intermediate_size",
        head_cuts=(
            Cut("attention.query_key_value.weight", 0),
            Cut("attention.query_key_value.bias", 0),
            Cut("attention.dense.weight", 1),
        ),
        neuron_cuts=(
            Cut("mlp.dense_h_to_4h.weight", 0),
            Cut("mlp.dense_h_to_4h.bias", 0),
            Cut("mlp.dense_4h_to_h.weight", 1),
        ),
        writers=("attention.dense", "mlp.dense_4h_to_h"),
        norms=("input_layernorm", "post_attention_layernorm"),
        rotary=GPTNeoXRotaryEmbedding,
        dropout="hidden_dropout",
        resize_attention=_resize_attention,
    )


register_for_folders(CompactGPTNeoXConfig, CompactGPTNeoXForCausalLM)
