"""Decoders with fresh weights: teachers pretrained here, and students of distillation."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iskd.models.families import FAMILIES

# What the families call their dropouts; one that a family has not is passed over.
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout")


def scratch_config(
    family: str,
    shape: Mapping[str, Any],
    *,
    vocabulary: int,
    positions: int,
    end_token: int | None,
    dropout: float = 0.0,
    initializer_range: float = 0.02,
) -> PreTrainedConfig:
    """Give the config of a decoder of the family.

    Args:
        family: a key of ``FAMILIES``.
        shape: an ``Architecture`` section of the config: blocks, width, heads, mlp; kv_heads for
            families whose heads may share keys and values (left out, every head has its own).
        vocabulary: entries of its tokenizer.
        positions: longest sequence, in tokens.
        end_token: id of the token that ends (and begins) a text.
        dropout: probability, everywhere in the model.
        initializer_range: standard deviation of the fresh weights.
    """
    kind = FAMILIES[family]
    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["blocks"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": positions,
        "bos_token_id": end_token,
        "eos_token_id": end_token,
        "initializer_range": initializer_range,
        kind.adapter.mlp_width: shape["mlp"] or 4 * shape["width"],
    }
    known = kind.config()
    values |= {key: dropout for key in _DROPOUTS if hasattr(known, key)}
    if hasattr(known, "num_key_value_heads"):
        values["num_key_value_heads"] = shape.get("kv_heads") or shape["heads"]
    if getattr(known, "head_dim", None) is not None:
        values["head_dim"] = shape["width"] // shape["heads"]
    return kind.config(**values)


def fresh_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Draw a model's weights from the seed, as its family does by default."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)
