"""Structured L1 pruning: the weakest attention heads and MLP neurons are removed.

A unit's strength is the mean absolute value of its weights (its L1 norm per weight, so that heads
and neurons, which differ in size, can stand in one list). The weakest units of the whole model go
first until the model is no larger than asked; each block keeps at least one head and one neuron.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from iskd.errors import UserError
from iskd.models.families import Cut, Family, family_of
from iskd.models.sizes import ChangedBlocks, NarrowSizes
from iskd.models.substitution import narrow_config

UnitKind = Literal["head", "neuron"]


@dataclass(frozen=True)
class Unit:
    """One attention head or MLP neuron: where it is, how strong, and how many weights it has."""

    block: int
    kind: UnitKind
    index: int
    strength: float
    weights: int


def _by_unit(tensor: torch.Tensor, cut: Cut, units: int) -> torch.Tensor:
    """View a weight as (parts, units, weights per unit and part)."""
    front = tensor.movedim(cut.dim, 0)
    return front.reshape(cut.parts, units, -1)


def _block_units(
    block: nn.Module, number: int, kind: UnitKind, cuts: tuple[Cut, ...], count: int
) -> list[Unit]:
    views = [
        _by_unit(block.get_parameter(c.weight).detach().double().cpu(), c, count) for c in cuts
    ]
    norms = sum(v.abs().sum(dim=(0, 2)) for v in views)
    size = sum(v.shape[0] * v.shape[2] for v in views)
    assert isinstance(norms, torch.Tensor)  # noqa: S101 - a family has at least one cut
    return [Unit(number, kind, i, float(norm) / size, size) for i, norm in enumerate(norms)]


def rank_units(model: PreTrainedModel) -> list[Unit]:
    """List all heads and neurons of a teacher, weakest first; ties go by place.

    Raises:
        UserError: the model is compressed already, or its heads share keys and values.
    """
    family = family_of(model.config)
    changed = ChangedBlocks.of(model.config)
    if changed.compact or changed.narrow:
        raise UserError("the model is compressed already: L1 pruning starts from a whole teacher")
    heads = model.config.num_attention_heads
    if getattr(model.config, "num_key_value_heads", heads) != heads:
        raise UserError(
            "the model's heads share keys and values: L1 pruning needs a model whose heads do not"
        )
    neurons = family.mlp_neurons(model.config)
    units: list[Unit] = []
    for number, block in enumerate(family.blocks(model)):
        units += _block_units(block, number, "head", family.head_cuts, heads)
        units += _block_units(block, number, "neuron", family.neuron_cuts, neurons)
    return sorted(units, key=lambda u: (u.strength, u.block, u.kind, u.index))


def choose_units(model: PreTrainedModel, target: int) -> list[Unit]:
    """Choose the units to remove, so that at most ``target`` parameters are left.

    Raises:
        UserError: the target cannot be reached by removing heads and neurons.
    """
    excess = sum(p.numel() for p in model.parameters()) - target
    ranked = rank_units(model)
    left: dict[tuple[int, UnitKind], int] = {}
    for unit in ranked:
        left[unit.block, unit.kind] = left.get((unit.block, unit.kind), 0) + 1
    chosen: list[Unit] = []
    for unit in ranked:
        if excess <= 0:
            break
        if left[unit.block, unit.kind] > 1:
            chosen.append(unit)
            left[unit.block, unit.kind] -= 1
            excess -= unit.weights
    if excess > 0:
        raise UserError(
            f"{target} parameters cannot be reached by removing heads and MLP neurons: "
            f"{excess} are left over; compare at an earlier step"
        )
    return _hand_back(chosen, -excess)


def _hand_back(chosen: list[Unit], spare: int) -> list[Unit]:
    """Keep removed units after all, strongest first, as far as the target still holds.

    The last unit removed may be a whole head, which leaves the model smaller than asked.
    """
    removed = list(chosen)
    for unit in reversed(chosen):
        if unit.weights <= spare:
            removed.remove(unit)
            spare -= unit.weights
    return removed


def prune(model: PreTrainedModel, units: list[Unit]) -> PreTrainedModel:
    """Give a smaller model without the given units; every other weight is kept as it is."""
    family = family_of(model.config)
    kept = _kept_indices(model, family, units)
    config = narrow_config(
        model.config,
        {
            block: NarrowSizes(heads=len(heads), mlp=len(neurons))
            for block, (heads, neurons) in kept.items()
        },
    )
    pruned = AutoModelForCausalLM.from_config(
        config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )
    state = model.state_dict()
    counts = (model.config.num_attention_heads, family.mlp_neurons(model.config))
    for block, indices in kept.items():
        for cuts, units_total, keep in zip(
            (family.head_cuts, family.neuron_cuts), counts, indices, strict=True
        ):
            for cut in cuts:
                name = f"{family.blocks_path}.{block}.{cut.weight}"
                state[name] = _select(state[name], cut, units_total, keep)
    pruned.load_state_dict(state)
    pruned.generation_config = model.generation_config
    return pruned.to(model.device).train(model.training)


def _kept_indices(
    model: PreTrainedModel, family: Family, units: list[Unit]
) -> dict[int, tuple[list[int], list[int]]]:
    gone = {(u.block, u.kind, u.index) for u in units}
    touched = sorted({u.block for u in units})

    def keep(block: int, kind: UnitKind, count: int) -> list[int]:
        return [i for i in range(count) if (block, kind, i) not in gone]

    heads, neurons = model.config.num_attention_heads, family.mlp_neurons(model.config)
    return {b: (keep(b, "head", heads), keep(b, "neuron", neurons)) for b in touched}


def _select(tensor: torch.Tensor, cut: Cut, units: int, keep: list[int]) -> torch.Tensor:
    front = tensor.movedim(cut.dim, 0)
    rows = front.reshape(cut.parts, units, -1, *front.shape[1:])
    chosen = rows[:, keep].reshape(-1, *front.shape[1:])
    return chosen.movedim(0, cut.dim).contiguous()


def listing(units: list[Unit]) -> dict[str, dict[str, list[int]]]:
    """Write removed units for the artifact: block -> heads and neurons, in the teacher's count."""
    blocks: dict[str, dict[str, list[int]]] = {}
    for unit in sorted(units, key=lambda u: (u.block, u.kind, u.index)):
        place = blocks.setdefault(str(unit.block), {"heads": [], "neurons": []})
        place["heads" if unit.kind == "head" else "neurons"].append(unit.index)
    return blocks
