"""Decoders with compact and narrow blocks: what all families share.

This file is part of a saved model and needs torch and transformers alone, so that
``from_pretrained(folder, trust_remote_code=True)`` works without the package that made the folder.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.output_capturing import install_output_capuring_hook

from .iskd_adapter import Adapter, ChangedBlocks, CompactSizes, Cut, NarrowSizes, is_published
from .iskd_narrow import NoBlock, narrow_block

__all__ = [
    "Adapter",
    "ChangedBlocks",
    "CompactBlock",
    "CompactConfigMixin",
    "CompactModelMixin",
    "CompactSizes",
    "Cut",
    "NarrowSizes",
    "inner_config",
    "is_published",
    "narrow_block",
    "register_for_folders",
]


class CompactConfigMixin:
    """What a config that declares ``compact_blocks`` and ``narrow_blocks`` does with them."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]
        types = getattr(self, "layer_types", None)
        if types is not None:
            # The library makes its caches by this list too: a slot is of its block's type.
            own = list(types)[: self.num_hidden_layers]  # type: ignore[attr-defined]
            self.layer_types = own + [own[i] for i in ChangedBlocks.of(self).extra_slots()]

    def validate(self) -> None:
        """Run the family's own checks, on the types of the outer blocks alone."""
        types = getattr(self, "layer_types", None)
        if types is not None:
            self.layer_types = list(types)[: self.num_hidden_layers]  # type: ignore[attr-defined]
        try:
            super().validate()  # type: ignore[misc]
        finally:
            if types is not None:
                self.layer_types = types

    @property
    def per_layer_config(self) -> Any:
        """One config per KV-cache slot: the library sizes its caches by this."""
        own = list(super().per_layer_config)  # type: ignore[misc]
        return own + [self] * len(ChangedBlocks.of(self).extra_slots())

    @per_layer_config.setter
    def per_layer_config(self, value: Any) -> None:
        super(CompactConfigMixin, type(self)).per_layer_config.fset(self, value)  # type: ignore[misc]


def inner_config(config: Any, sizes: CompactSizes, adapter: Adapter) -> Any:
    """Give the outer config with the sizes of a compact block's backbone."""
    inner = copy.deepcopy(config)
    inner.hidden_size = sizes.width
    inner.num_attention_heads = sizes.heads
    setattr(inner, adapter.mlp_width, sizes.mlp)
    if hasattr(inner, "num_key_value_heads"):
        inner.num_key_value_heads = sizes.heads
    if getattr(inner, "head_dim", None) is not None:
        inner.head_dim = sizes.width // sizes.heads
    if hasattr(inner, "scale_attn_by_inverse_layer_idx"):
        inner.scale_attn_by_inverse_layer_idx = False  # an inner layer's index is a cache slot
    return inner


class CompactBlock(GradientCheckpointingLayer):
    """Down-projection, a small backbone of the same family, up-projection, plus the input.

    Takes and gives (batch, positions, hidden size). The backbone has its own positions (embedded,
    or rotary for its own head size) and final norm. Its layers get the outer model's causal mask,
    which has no head dimension of its own and so fits any number of heads.
    """

    def __init__(
        self, config: Any, sizes: CompactSizes, slots: list[int], adapter: Adapter
    ) -> None:
        super().__init__()
        self._positional = adapter.positional
        inner = inner_config(config, sizes, adapter)
        self.down = nn.Linear(config.hidden_size, sizes.width)
        self.activation = ACT2FN[sizes.activation]
        self.positions: nn.Module | None = None
        if adapter.rotary is None and sizes.positions:
            self.positions = nn.Embedding(sizes.positions, sizes.width)
        self.rotary = adapter.rotary(config=inner) if adapter.rotary is not None else None
        self.drop = nn.Dropout(getattr(config, adapter.dropout) if adapter.dropout else 0.0)
        self.blocks = nn.ModuleList()
        for slot in slots:
            layer = adapter.layer(inner, layer_idx=slot)
            # `set_attn_implementation` changes the outer config, and attention asks its own.
            layer.get_submodule(adapter.attention).config = config
            self.blocks.append(layer)
        self.norm = adapter.norm(config, sizes.width)
        self.up = nn.Linear(sizes.width, config.hidden_size)
        # Whether the outer model was given a mask, as the published code's defect depends on it.
        self.given_mask: torch.Tensor | None = None
        if sizes.published:
            if adapter.publish is None:
                raise ValueError(f"the published code has no family {adapter.name}")
            adapter.publish(self)

    def features(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give what the up-projection reads: (batch, positions, width)."""
        given = {**dict(zip(self._positional, args, strict=False)), **kwargs}
        # A decoder-only model has no encoder to attend to.
        given = {name: value for name, value in given.items() if not name.startswith("encoder_")}
        inner = self.activation(self.down(hidden_states))
        if self.positions is not None:
            inner = inner + self.positions(given["position_ids"])
        inner = self.drop(inner)
        if self.rotary is not None:
            # The outer angles are for the outer head size.
            given["position_embeddings"] = self.rotary(inner, position_ids=given["position_ids"])
        for block in self.blocks:
            out = block(inner, **given)
            inner = out[0] if isinstance(out, tuple) else out
        normed: torch.Tensor = self.norm(inner)
        return normed

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Give the block's output, same shape as ``hidden_states``."""
        written: torch.Tensor = self.up(self.features(hidden_states, *args, **kwargs))
        return hidden_states + written


class CompactModelMixin:
    """A family's causal model with the changed blocks that its config lists."""

    adapter: Adapter

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        assert isinstance(self, PreTrainedModel)  # noqa: S101 - narrows the type
        changed = ChangedBlocks.of(config)
        blocks = self.adapter.blocks(self)
        slots = changed.cache_slots(config.num_hidden_layers)
        for index, compact in changed.compact.items():
            blocks[index] = CompactBlock(config, compact, slots[index], self.adapter)
        for index, narrow in changed.narrow.items():
            blocks[index] = narrow_block(config, narrow, index, self.adapter)
        self.post_init()
        # The residual connection of a block holds on one device only.
        self._no_split_modules = {*(self._no_split_modules or ()), CompactBlock.__name__}
        if self.adapter.after_init is not None:
            for index in changed.compact:
                self.adapter.after_init(blocks[index], config)
        _record_outer_blocks(self.base_model, blocks, self.adapter)
        published = [blocks[i] for i, sizes in changed.compact.items() if sizes.published]
        if published:
            _pass_mask_to_blocks(self.base_model, published)


def _record_outer_blocks(base: nn.Module, blocks: nn.ModuleList, adapter: Adapter) -> None:
    """Install the library's hooks for ``output_hidden_states`` and ``output_attentions``.

    On its own it would take the states of layers inside of compact blocks, and not the blocks'.
    """
    for block in blocks:
        install_output_capuring_hook(block, "hidden_states", 0)
        layers = block.blocks if isinstance(block, CompactBlock) else [block]
        for layer in layers:
            if not isinstance(layer, NoBlock):
                attention = layer.get_submodule(adapter.attention)
                install_output_capuring_hook(attention, "attentions", 1)
    base._output_capturing_hooks_installed = True  # type: ignore[assignment]


def _pass_mask_to_blocks(base: nn.Module, blocks: list[CompactBlock]) -> None:
    def pass_mask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del args
        for block in blocks:
            block.given_mask = kwargs.get("attention_mask")

    base.register_forward_pre_hook(pass_mask, with_kwargs=True)


def register_for_folders(config: type[Any], model: type[Any]) -> None:
    """Have ``save_pretrained`` copy these files into the folder and name them in its config."""
    config.register_for_auto_class()
    model.register_for_auto_class("AutoModelForCausalLM")
