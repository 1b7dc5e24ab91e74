"""Phi: rotary positions, attention and MLP side by side, separate projections."""

from typing import Any

import torch
from torch import nn
from transformers import PhiConfig, PhiForCausalLM
from transformers.models.phi.modeling_phi import PhiDecoderLayer, PhiRotaryEmbedding

from .iskd_blocks import (
    Adapter,
    CompactBlock,
    CompactConfigMixin,
    CompactModelMixin,
    Cut,
    register_for_folders,
)


def _norm(config: Any, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=config.layer_norm_eps)


def _fix_norms(attention: nn.Module, config: Any) -> None:
    """Give the norms of queries and keys the head's own size: the library divides by the heads."""
    if config.qk_layernorm:
        size = config.hidden_size // config.num_attention_heads
        for name in ("q_layernorm", "k_layernorm"):
            setattr(attention, name, nn.LayerNorm(size, eps=config.layer_norm_eps))


def _publish(block: CompactBlock) -> None:
    """Attend to every token, later ones too, whenever the outer model was given a mask."""

    def open_up(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if block.given_mask is None:
            return args, kwargs
        hidden = args[0]
        real = block.given_mask[:, None, None, :].bool()
        closed = torch.zeros(1, dtype=hidden.dtype, device=hidden.device)
        mask = closed.masked_fill(~real, torch.finfo(hidden.dtype).min)
        mask = mask.expand(-1, 1, hidden.shape[1], -1)
        return args, {**kwargs, "attention_mask": mask}

    for layer in block.blocks:
        layer.register_forward_pre_hook(open_up, with_kwargs=True)


class CompactPhiConfig(CompactConfigMixin, PhiConfig):
    """A Phi config that also says which blocks are compact and which are narrow."""

    model_type = "iskd_phi"

    compact_blocks: list[dict[str, Any]] | None = None
    narrow_blocks: list[dict[str, Any]] | None = None


class CompactPhiForCausalLM(CompactModelMixin, PhiForCausalLM):
    """Phi whose config lists compact and narrow blocks; all else is the library's own class."""

    config_class = CompactPhiConfig
    adapter = Adapter(
        name="phi",
        layer=PhiDecoderLayer,
        blocks_path="model.layers",
        attention="self_attn",
        norm=_norm,
        mlp_width="intermediate_size",
        head_cuts=(
            *(
                Cut(f"self_attn.{projection}_proj.{part}", 0)
                for projection in "qkv"
                for part in ("weight", "bias")
            ),
            Cut("self_attn.dense.weight", 1),
        ),
        neuron_cuts=(Cut("mlp.fc1.weight", 0), Cut("mlp.fc1.bias", 0), Cut("mlp.fc2.weight", 1)),
        writers=("self_attn.dense", "mlp.fc2"),
        norms=("input_layernorm", "input_layernorm"),
        rotary=PhiRotaryEmbedding,
        dropout="embd_pdrop",
        fix_narrow_attention=_fix_norms,
        publish=_publish,
    )


register_for_folders(CompactPhiConfig, CompactPhiForCausalLM)
