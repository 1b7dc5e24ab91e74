"""How a changed model is described: sizes of its blocks, and what differs between families.

This file is part of a saved model and needs torch and transformers alone.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .iskd_blocks import CompactBlock


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

    Where heads share keys and values, ``heads`` is a multiple of the heads that share one. With 0
    heads the attention is left out, its norm included; with 0 neurons (``mlp``) the MLP is.
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
        norms: the norms that attention and MLP read through, which may be one and the same.
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
    norms: tuple[str, str]
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
