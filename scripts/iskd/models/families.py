"""Where a family keeps its blocks, and what of them a baseline may cut."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from iskd.errors import UserError
from iskd.models.gpt2 import CompactGPT2Config, CompactGPT2LMHeadModel
from iskd.models.phi import CompactPhiConfig, CompactPhiForCausalLM


@dataclass(frozen=True)
class Cut:
    """One dimension of one weight along which units (heads or neurons) lie side by side.

    ``parts`` is the number of times the whole row of units repeats along ``dim`` (3 for GPT-2's
    fused query-key-value projection).
    """

    weight: str
    dim: int
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """One architecture: its classes, the path of its block list, and where its units lie."""

    name: str
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    compact_config: type[PreTrainedConfig]
    compact_model: type[PreTrainedModel]
    blocks_path: str
    head_cuts: tuple[Cut, ...]
    neuron_cuts: tuple[Cut, ...]
    mlp_width: str

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """Give the model's list of blocks, first block first."""
        blocks = model.get_submodule(self.blocks_path)
        assert isinstance(blocks, nn.ModuleList)  # noqa: S101 - narrows the type
        return blocks

    def mlp_neurons(self, config: Any) -> int:
        """Give the width of a full block's MLP (GPT-2 leaves it out for 4 times the model's)."""
        return getattr(config, self.mlp_width) or 4 * config.hidden_size


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        name="gpt2",
        config=GPT2Config,
        model=GPT2LMHeadModel,
        compact_config=CompactGPT2Config,
        compact_model=CompactGPT2LMHeadModel,
        blocks_path="transformer.h",
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
        mlp_width="n_inner",
    ),
    "phi": Family(
        name="phi",
        config=PhiConfig,
        model=PhiForCausalLM,
        compact_config=CompactPhiConfig,
        compact_model=CompactPhiForCausalLM,
        blocks_path="model.layers",
        head_cuts=(
            *(
                Cut(f"self_attn.{projection}_proj.{part}", 0)
                for projection in "qkv"
                for part in ("weight", "bias")
            ),
            Cut("self_attn.dense.weight", 1),
        ),
        neuron_cuts=(Cut("mlp.fc1.weight", 0), Cut("mlp.fc1.bias", 0), Cut("mlp.fc2.weight", 1)),
        mlp_width="intermediate_size",
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """Find the family of a teacher's or a compressed model's config.

    Raises:
        UserError: no adapter for this architecture.
    """
    for family in FAMILIES.values():
        if config.model_type in (family.config.model_type, family.compact_config.model_type):
            return family
    raise UserError(
        f"architecture {config.model_type!r} is not supported: "
        f"use a decoder of one of the families {', '.join(FAMILIES)}"
    )


def register() -> None:
    """Make the Auto classes of transformers know the compressed model types (idempotent)."""
    for family in FAMILIES.values():
        AutoConfig.register(family.compact_config.model_type, family.compact_config, exist_ok=True)
        AutoModelForCausalLM.register(family.compact_config, family.compact_model, exist_ok=True)
