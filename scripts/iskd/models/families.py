"""The families that can be compressed: a row each, from the class in its file of ``modeling/``."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iskd.errors import UserError
from iskd.models.modeling.iskd_blocks import Adapter
from iskd.models.modeling.iskd_gpt2 import CompactGPT2LMHeadModel
from iskd.models.modeling.iskd_gpt_neox import CompactGPTNeoXForCausalLM
from iskd.models.modeling.iskd_llama import (
    CompactLlamaForCausalLM,
    CompactMistralForCausalLM,
    CompactQwen2ForCausalLM,
    CompactQwen3ForCausalLM,
)
from iskd.models.modeling.iskd_phi import CompactPhiForCausalLM

# The one place where a new family is entered.
_MODELS: tuple[Any, ...] = (
    CompactGPT2LMHeadModel,
    CompactPhiForCausalLM,
    CompactLlamaForCausalLM,
    CompactMistralForCausalLM,
    CompactQwen2ForCausalLM,
    CompactQwen3ForCausalLM,
    CompactGPTNeoXForCausalLM,
)


@dataclass(frozen=True)
class Family:
    """One architecture: its plain classes, its classes with changed blocks, and its adapter."""

    config: type[PreTrainedConfig]
    compact_config: type[PreTrainedConfig]
    compact_model: type[PreTrainedModel]
    adapter: Adapter

    @property
    def name(self) -> str:
        """The family's name in a study's config."""
        return self.adapter.name

    def blocks(self, model: PreTrainedModel) -> nn.ModuleList:
        """Give the model's list of blocks, first block first."""
        return self.adapter.blocks(model)


def _family(model: Any) -> Family:
    compact = model.config_class
    # The classes in front are ours; the plain config is the next one of the library.
    plain = next(c for c in compact.__mro__ if c.__module__.startswith("transformers."))
    return Family(plain, compact, model, model.adapter)


FAMILIES: dict[str, Family] = {model.adapter.name: _family(model) for model in _MODELS}


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
