"""What a model's config says about the blocks that are no longer the teacher's."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class CompactSizes:
    """Sizes of one compact block.

    ``width`` is the inner hidden size d', ``heads`` and ``blocks`` count the attention heads and
    the layers of the small backbone, ``mlp`` is the width of its MLPs, ``positions`` the length
    of its own position embedding (families with rotary positions ignore it), and ``activation``
    names the function after the down-projection (a key of transformers' ``ACT2FN``).
    """

    width: int
    heads: int
    blocks: int
    mlp: int
    positions: int
    activation: str = "relu"


@dataclass(frozen=True)
class NarrowSizes:
    """Sizes of a block that kept its shape but lost attention heads and MLP neurons."""

    heads: int
    mlp: int


@dataclass(frozen=True)
class ChangedBlocks:
    """The changed blocks of a model, by block index, as its config lists them."""

    compact: dict[int, CompactSizes]
    narrow: dict[int, NarrowSizes]

    @classmethod
    def of(cls, config: Any) -> "ChangedBlocks":
        """Read ``compact_blocks`` and ``narrow_blocks`` of a Hugging Face config.

        A teacher's config has neither attribute and gives two empty mappings.
        """
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
        """Assign every layer inside a compact block its own place in the KV cache.

        The first inner layer takes the place of the block it replaces, so that slot 0 always
        grows with the sequence (the library reads the past length there); further inner layers
        take places after the outer model's own.

        Returns:
            block index -> cache slots of its inner layers
        """
        slots: dict[int, list[int]] = {}
        free = n_blocks
        for index, sizes in sorted(self.compact.items()):
            extra = sizes.blocks - 1
            slots[index] = [index, *range(free, free + extra)]
            free += extra
        return slots

    def extra_slots(self) -> int:
        """Count the cache slots that compact blocks need beyond one per outer block."""
        return sum(sizes.blocks - 1 for sizes in self.compact.values())
