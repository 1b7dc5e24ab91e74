"""Llama and its relatives (Mistral, Qwen2, Qwen3): rotary positions, gated MLP, shared keys."""

from typing import Any

from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mistral.modeling_mistral import (
    MistralDecoderLayer,
    MistralRMSNorm,
    MistralRotaryEmbedding,
)
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
)

from .iskd_blocks import (
    Adapter,
    CompactConfigMixin,
    CompactModelMixin,
    Cut,
    register_for_folders,
)


def _adapter(
    layer: type[nn.Module], norm: type[nn.Module], rotary: type[nn.Module], name: str
) -> Adapter:
    """Say once what the relatives share; only the library's classes differ."""

    def make_norm(config: Any, width: int) -> nn.Module:
        return norm(width, eps=config.rms_norm_eps)

    parts = ("weight", "bias")
    return Adapter(
        name=name,
        layer=layer,
        blocks_path="model.layers",
        attention="self_attn",
        norm=make_norm,
        mlp_width="intermediate_size",
        head_cuts=(
            *(Cut(f"self_attn.{p}_proj.{part}", 0) for p in "qkv" for part in parts),
            Cut("self_attn.o_proj.weight", 1),
        ),
        neuron_cuts=(
            *(Cut(f"mlp.{p}_proj.{part}", 0) for p in ("gate", "up") for part in parts),
            Cut("mlp.down_proj.weight", 1),
        ),
        writers=("self_attn.o_proj", "mlp.down_proj"),
        norms=("input_layernorm", "post_attention_layernorm"),
        rotary=rotary,
    )


class CompactLlamaConfig(CompactConfigMixin, LlamaConfig):
    """A Llama config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_llama"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None


class CompactLlamaForCausalLM(CompactModelMixin, LlamaForCausalLM):
    """Llama whose config lists compact and narrow blocks; all else is the library's own class."""

    config_class = CompactLlamaConfig
    adapter = _adapter(LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding, "llama")


class CompactMistralConfig(CompactConfigMixin, MistralConfig):
    """A Mistral config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_mistral"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None


class CompactMistralForCausalLM(CompactModelMixin, MistralForCausalLM):
    """Mistral whose config lists changed blocks; all else is the library's own class."""

    config_class = CompactMistralConfig
    adapter = _adapter(MistralDecoderLayer, MistralRMSNorm, MistralRotaryEmbedding, "mistral")


class CompactQwen2Config(CompactConfigMixin, Qwen2Config):
    """A Qwen2 config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_qwen2"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None


class CompactQwen2ForCausalLM(CompactModelMixin, Qwen2ForCausalLM):
    """Qwen2 whose config lists compact and narrow blocks; all else is the library's own class."""

    config_class = CompactQwen2Config
    adapter = _adapter(Qwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding, "qwen2")


class CompactQwen3Config(CompactConfigMixin, Qwen3Config):
    """A Qwen3 config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_qwen3"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None


class CompactQwen3ForCausalLM(CompactModelMixin, Qwen3ForCausalLM):
    """Qwen3 whose config lists compact and narrow blocks; all else is the library's own class."""

    config_class = CompactQwen3Config
    adapter = _adapter(Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding, "qwen3")


register_for_folders(CompactLlamaConfig, CompactLlamaForCausalLM)
register_for_folders(CompactMistralConfig, CompactMistralForCausalLM)
register_for_folders(CompactQwen2Config, CompactQwen2ForCausalLM)
register_for_folders(CompactQwen3Config, CompactQwen3ForCausalLM)
