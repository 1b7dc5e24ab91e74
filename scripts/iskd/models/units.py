"""Attention heads and MLP neurons of a decoder: how strong each is, and taking some along."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedConfig

from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import Adapter, Cut, NarrowSizes

UnitKind = Literal["head", "neuron"]


@dataclass(frozen=True)
class Unit:
    """One attention head or MLP neuron: where it is, how strong, and how many weights it has.

    Where several heads share a key and a value, they are one unit.
    """

    block: int
    kind: UnitKind
    index: int
    strength: float
    weights: int


def unit_counts(config: PreTrainedConfig) -> dict[UnitKind, int]:
    """Count the units of a whole block."""
    adapter = family_of(config).adapter
    heads = config.num_attention_heads // adapter.sharing_heads(config)
    return {"head": heads, "neuron": adapter.mlp_neurons(config)}


def _cuts(adapter: Adapter, block: nn.Module) -> Iterator[tuple[UnitKind, Cut]]:
    """Give the cuts of those parameters that this block has."""
    present = {name for name, _ in block.named_parameters()}
    for kind, cuts in (("head", adapter.head_cuts), ("neuron", adapter.neuron_cuts)):
        for cut in cuts:
            if cut.parameter in present:
                yield kind, cut  # type: ignore[misc]


def block_units(block: nn.Module, number: int, config: PreTrainedConfig) -> list[Unit]:
    """List the units of one whole block.

    A unit's strength is the mean absolute value of its weights (its L1 norm per weight, so that
    heads and neurons, which differ in size, can stand in one list).
    """
    counts = unit_counts(config)
    norms: dict[UnitKind, torch.Tensor] = {}
    sizes: dict[UnitKind, int] = dict.fromkeys(counts, 0)
    for kind, cut in _cuts(family_of(config).adapter, block):
        weight = block.get_parameter(cut.parameter).detach().double().cpu()
        view = weight.movedim(cut.dim, 0).reshape(cut.parts, counts[kind], -1)
        norms[kind] = norms.get(kind, torch.zeros(())) + view.abs().sum(dim=(0, 2))
        sizes[kind] += view.shape[0] * view.shape[2]
    return [
        Unit(number, kind, i, float(norm) / sizes[kind], sizes[kind])
        for kind, values in norms.items()
        for i, norm in enumerate(values)
    ]


def strongest(units: list[Unit], sizes: NarrowSizes, share: int) -> dict[UnitKind, list[int]]:
    """Choose the units of one block that a narrow block keeps, in their order.

    Args:
        units: of :func:`block_units`.
        sizes: how many heads and neurons are kept.
        share: heads per unit.
    """
    kept: dict[UnitKind, list[int]] = {}
    for kind, count in (("head", sizes.heads // share), ("neuron", sizes.mlp)):
        own = sorted((u for u in units if u.kind == kind), key=lambda u: (-u.strength, u.index))
        kept[kind] = sorted(u.index for u in own[:count])  # type: ignore[index]
    return kept


def kept_state(
    block: nn.Module,
    kept: Mapping[UnitKind, list[int]],
    config: PreTrainedConfig,
    now: NarrowSizes | None = None,
) -> dict[str, torch.Tensor]:
    """Give a block's state with only the kept units, as a narrow block loads it.

    Args:
        block: the block.
        kept: the units that stay, in their order.
        config: of a model around it.
        now: the block's own sizes; left out, it is whole.
    """
    state = {name: value.detach() for name, value in block.state_dict().items()}
    counts = unit_counts(config)
    if now is not None:
        share = family_of(config).adapter.sharing_heads(config)
        counts = {"head": now.heads // share, "neuron": now.mlp}
    for kind, cut in _cuts(family_of(config).adapter, block):
        front = state[cut.parameter].movedim(cut.dim, 0)
        rows = front.reshape(cut.parts, counts[kind], -1, *front.shape[1:])
        chosen = rows[:, kept[kind]].reshape(-1, *front.shape[1:])
        state[cut.parameter] = chosen.movedim(0, cut.dim).contiguous()
    return state
