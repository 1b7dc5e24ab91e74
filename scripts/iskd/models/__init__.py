"""Compressed decoders as ordinary Hugging Face models."""

from iskd.models.families import FAMILIES, Family, family_of, register
from iskd.models.sizes import CompactSizes, NarrowSizes
from iskd.models.substitution import (
    compact_config,
    narrow_config,
    parameter_count,
    replace_block,
)

__all__ = [
    "FAMILIES",
    "CompactSizes",
    "Family",
    "NarrowSizes",
    "compact_config",
    "family_of",
    "narrow_config",
    "parameter_count",
    "register",
    "replace_block",
]

register()
