"""Structured L1 pruning: the weakest attention heads and MLP neurons are removed.

The weakest units of the whole model go first until the model is no larger than requested; each
block keeps at least one head and one neuron. Heads that share a key and a value go together. (A
unit's strength: :func:`iskd.models.units.block_units`.)
"""

from transformers import AutoModelForCausalLM, PreTrainedModel

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import ChangedBlocks, NarrowSizes
from iskd.models.substitution import narrow_config
from iskd.models.units import Unit, UnitKind, block_units, kept_state, unit_counts


def rank_units(model: PreTrainedModel) -> list[Unit]:
    """List all heads and neurons of a teacher, weakest first; ties go by place.

    Raises:
        UserError: the model is compressed already.
    """
    family = family_of(model.config)
    changed = ChangedBlocks.of(model.config)
    if changed.compact or changed.narrow:
        raise UserError("the model is compressed already: L1 pruning starts from a whole teacher")
    units: list[Unit] = []
    for number, block in enumerate(family.blocks(model)):
        units += block_units(block, number, model.config)
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

    The last unit removed may be a whole head, which leaves the model smaller than requested.
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
    share = family.adapter.sharing_heads(model.config)
    kept = _kept_units(model, units)
    config = narrow_config(
        model.config,
        {
            block: NarrowSizes(heads=len(own["head"]) * share, mlp=len(own["neuron"]))
            for block, own in kept.items()
        },
    )
    pruned = AutoModelForCausalLM.from_config(
        config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
    )
    state = model.state_dict()
    for index, own in kept.items():
        block = family.blocks(model)[index]
        prefix = f"{family.adapter.blocks_path}.{index}."
        for name, value in kept_state(block, own, model.config).items():
            state[prefix + name] = value
    pruned.load_state_dict(state)
    pruned.generation_config = model.generation_config
    return pruned.to(model.device).train(model.training)


def _kept_units(model: PreTrainedModel, units: list[Unit]) -> dict[int, dict[UnitKind, list[int]]]:
    gone = {(u.block, u.kind, u.index) for u in units}
    counts = unit_counts(model.config)
    return {
        block: {
            kind: [i for i in range(count) if (block, kind, i) not in gone]
            for kind, count in counts.items()
        }
        for block in sorted({u.block for u in units})
    }


def listing(units: list[Unit]) -> dict[str, dict[str, list[int]]]:
    """Write removed units for the artifact: block -> heads and neurons, in the teacher's count."""
    blocks: dict[str, dict[str, list[int]]] = {}
    for unit in sorted(units, key=lambda u: (u.block, u.kind, u.index)):
        place = blocks.setdefault(str(unit.block), {"heads": [], "neurons": []})
        place["heads" if unit.kind == "head" else "neurons"].append(unit.index)
    return blocks
