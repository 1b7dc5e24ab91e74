"""Compressed decoders as ordinary Hugging Face models."""

from iskd.models.families import FAMILIES, Family, family_of, register
from iskd.models.modeling.iskd_blocks import ChangedBlocks, CompactSizes, NarrowSizes
from iskd.models.recipes import parameter_count, resolve_sizes
from iskd.models.substitution import (
    compact_config,
    narrow_config,
    replace_block,
    replace_blocks,
)

__all__ = [
    "FAMILIES",
    "ChangedBlocks",
    "CompactSizes",
    "Family",
    "NarrowSizes",
    "compact_config",
    "family_of",
    "narrow_config",
    "parameter_count",
    "register",
    "replace_block",
    "replace_blocks",
    "resolve_sizes",
]

register()
