"""Decoders with fresh weights: teachers pretrained here, and students of distillation."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iskd.models.families import FAMILIES


def scratch_config(
    family: str,
    shape: dict[str, Any],
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
        shape: an ``Architecture`` section of the config: blocks, width, heads, mlp.
        vocabulary: entries of its tokenizer.
        positions: longest sequence, in tokens.
        end_token: id of the token that ends (and begins) a text.
        dropout: probability, everywhere in the model.
        initializer_range: standard deviation of the fresh weights.
    """
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["blocks"],
        "num_attention_heads": shape["heads"],
        "max_position_embeddings": positions,
        "bos_token_id": end_token,
        "eos_token_id": end_token,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "initializer_range": initializer_range,
    }
    mlp = shape["mlp"] or 4 * shape["width"]
    own = {
        "gpt2": {"n_inner": mlp, "attn_pdrop": dropout},
        "phi": {"intermediate_size": mlp, "attention_dropout": dropout},
    }[family]
    return FAMILIES[family].config(**common, **own)


def fresh_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Draw a model's weights from the seed, as its family does by default."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)
