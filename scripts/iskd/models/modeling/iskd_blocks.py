"""Decoders with compact and narrow blocks: what all families share.

This file is part of a saved model and needs torch and transformers alone, so that
``from_pretrained(folder, trust_remote_code=True)`` works without the package that made the folder.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.output_capturing import install_output_capuring_hook


@dataclass(frozen=True)
class CompactSizes:
    """Sizes of one compact block.

    ``width`` is the inner hidden size d', ``heads`` and ``blocks`` count the backbone's attention
    heads and layers, ``mlp`` is the width of its MLPs, ``positions`` the length of its position
    embedding (0 for none, as with rotary positions), ``activation`` a key of transformers'
    ``ACT2FN``. ``published`` gives the block the defect of the paper's published code.
    """

    width: int
    heads: int
    blocks: int
    mlp: int
    positions: int
    activation: str = "relu"
    published: bool = False


@dataclass(frozen=True)
class NarrowSizes:
    """Sizes of a block that kept its shape but lost attention heads and MLP neurons.

    Where heads share keys and values, ``heads`` is a multiple of the heads that share one.
    """

    heads: int
    mlp: int


@dataclass(frozen=True)
class ChangedBlocks:
    """The changed blocks of a model, by block index, as its config lists them."""

    compact: dict[int, CompactSizes]
    narrow: dict[int, NarrowSizes]

    @classmethod
    def of(cls, config: Any) -> "ChangedBlocks":
        """Read ``compact_blocks`` and ``narrow_blocks`` of a config; a teacher's has neither."""
        return cls(
            compact={
                entry["index"]: CompactSizes(**{k: v for k, v in entry.items() if k != "index"})
                for entry in getattr(config, "compact_blocks", None) or []
            },
            narrow={
                entry["index"]: NarrowSizes(**{k: v for k, v in entry.items() if k != "index"})
                for entry in getattr(config, "narrow_blocks", None) or []
            },
        )

    def entries(self) -> dict[str, list[dict[str, Any]]]:
        """Give the two lists that go into the config, sorted by block index."""
        return {
            "compact_blocks": [{"index": i, **asdict(s)} for i, s in sorted(self.compact.items())],
            "narrow_blocks": [{"index": i, **asdict(s)} for i, s in sorted(self.narrow.items())],
        }

    def cache_slots(self, n_blocks: int) -> dict[int, list[int]]:
        """Give the places in the KV cache of every compact block's layers, by block index.

        The first layer takes the place of the block it replaces, so that slot 0 always grows with
        the sequence (the library reads the past length there); the others come after the model's.
        """
        slots: dict[int, list[int]] = {}
        free = n_blocks
        for index, sizes in sorted(self.compact.items()):
            extra = sizes.blocks - 1
            slots[index] = [index, *range(free, free + extra)]
            free += extra
        return slots

    def extra_slots(self) -> list[int]:
        """List the cache slots needed beyond one per outer block, by the block they belong to."""
        return [i for i, sizes in sorted(self.compact.items()) for _ in range(sizes.blocks - 1)]


def is_published(config: Any) -> bool:
    """Say whether a model has the published code's defect: what it gives depends on a mask."""
    return any(sizes.published for sizes in ChangedBlocks.of(config).compact.values())


@dataclass(frozen=True)
class Cut:
    """One dimension of one parameter along which units (heads or neurons) lie side by side.

    ``parts`` says how often the row of units repeats along ``dim`` (3 times in GPT-2's fused
    query-key-value projection). A parameter that a model has not (a bias) is passed over.
    """

    parameter: str
    dim: int
    parts: int = 1


@dataclass(frozen=True)
class Adapter:
    """What differs between families: where things are, and what the library calls them.

    Attributes:
        name: the family's name in a study's config.
        layer: the library's class of one block.
        blocks_path: path of the block list in the causal model.
        attention: path of the attention module in a block.
        norm: builds the final norm of a backbone of the given width.
        mlp_width: the config's key for the width of the MLP.
        head_cuts: where a head's parameters lie (or those of one shared key).
        neuron_cuts: where an MLP neuron's parameters lie.
        writers: the two modules of a block that write into the residual stream.
        positional: names of what a block gets by position, after the hidden states.
        rotary: the library's class of rotary angles; None for learned positions.
        dropout: the config's key for the dropout of embeddings, if there is one.
        resize_attention: changes the number of heads, where the config takes no head size.
        fix_narrow_attention: corrects what a narrow block's attention derived from its own
            number of heads.
        after_init: finishes a fresh compact block as the family does.
        publish: gives a compact block the defect of the published code, for families it covers.
    """

    name: str
    layer: type[nn.Module]
    blocks_path: str
    attention: str
    norm: Callable[[Any, int], nn.Module]
    mlp_width: str
    head_cuts: tuple[Cut, ...]
    neuron_cuts: tuple[Cut, ...]
    writers: tuple[str, str]
    positional: tuple[str, ...] = ()
    rotary: type[nn.Module] | None = None
    dropout: str | None = None
    resize_attention: Callable[[nn.Module, Any, int], None] | None = None
    fix_narrow_attention: Callable[[nn.Module, Any], None] | None = None
    after_init: Callable[["CompactBlock", Any], None] | None = None
    publish: Callable[["CompactBlock"], None] | None = None

    def mlp_neurons(self, config: Any) -> int:
        """Give the width of a full block's MLP (GPT-2 leaves it out for 4 times the model's)."""
        return getattr(config, self.mlp_width) or 4 * config.hidden_size

    def sharing_heads(self, config: Any) -> int:
        """Give the number of attention heads that share one key and value."""
        shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return config.num_attention_heads // shared

    def blocks(self, model: nn.Module) -> nn.ModuleList:
        """Give the model's list of blocks, first block first."""
        blocks = model.get_submodule(self.blocks_path)
        assert isinstance(blocks, nn.ModuleList)  # noqa: S101 - narrows the type
        return blocks


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


def narrow_block(config: Any, sizes: NarrowSizes, index: int, adapter: Adapter) -> nn.Module:
    """Build the library's block with fewer heads (of unchanged size) and MLP neurons."""
    inner = copy.deepcopy(config)
    setattr(inner, adapter.mlp_width, sizes.mlp)
    if adapter.resize_attention is None:
        heads = config.num_attention_heads
        inner.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        inner.num_key_value_heads = sizes.heads // adapter.sharing_heads(config)
        inner.num_attention_heads = sizes.heads
    block = adapter.layer(inner, layer_idx=index)
    attention = block.get_submodule(adapter.attention)
    attention.config = config
    if adapter.resize_attention is not None:
        adapter.resize_attention(attention, config, sizes.heads)
    if adapter.fix_narrow_attention is not None:
        adapter.fix_narrow_attention(attention, config)
    return block


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
            install_output_capuring_hook(layer.get_submodule(adapter.attention), "attentions", 1)
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
