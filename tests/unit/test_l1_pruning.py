"""Structured L1 pruning."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from iskd.baselines.l1_pruning import Unit, choose_units, listing, prune, rank_units
from iskd.errors import UserError
from iskd.models import (
    ChangedBlocks,
    CompactSizes,
    NarrowSizes,
    family_of,
    parameter_count,
    replace_block,
)
from iskd.models.units import UnitKind
from tests.unit.conftest import FAMILIES, POSITIONS, MakeModel

IDS = torch.arange(1, 40)[None]
NEURONS = 128
# Every family as it comes, and those that may share keys and values the other way.
CASES: dict[str, dict[str, Any]] = {name: {} for name in FAMILIES}
CASES |= {f"{name} unshared": {"heads": 4} for name in ("llama", "mistral", "qwen2", "qwen3")}
CASES |= {"phi shared": {"heads": 4, "kv_heads": 2}, "llama biased": {"attention_bias": True}}
MakeCase = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def make(tiny_model: MakeModel) -> MakeCase:
    def make(case: str, **changes: Any) -> PreTrainedModel:
        return tiny_model(case.split(maxsplit=1)[0], **CASES[case], **changes)

    return make


def count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


def share(model: PreTrainedModel) -> int:
    config = model.config
    heads: int = config.num_attention_heads
    return heads // getattr(config, "num_key_value_heads", heads)


def units_of(model: PreTrainedModel, kind: UnitKind) -> int:
    """Count the units of a block: keys, or neurons."""
    return NEURONS if kind == "neuron" else model.config.num_attention_heads // share(model)


def written(model: PreTrainedModel, block: int, kind: UnitKind, index: int) -> torch.Tensor:
    """View the weights by which a unit writes into the stream: (size of the unit, width)."""
    adapter = family_of(model.config).adapter
    writer = adapter.blocks(model)[block].get_submodule(adapter.writers[kind == "neuron"])
    weight = writer.get_parameter("weight").detach()
    rows = weight.T if isinstance(writer, nn.Linear) else weight
    size = rows.shape[0] // units_of(model, kind)
    return rows[index * size : (index + 1) * size]


def silenced(model: PreTrainedModel, units: list[Unit]) -> PreTrainedModel:
    """Keep the shape, but let the given units write nothing into the stream."""
    for unit in units:
        written(model, unit.block, unit.kind, unit.index).zero_()
    return model


def weaken(model: PreTrainedModel, block: int, kind: UnitKind, index: int, factor: float) -> None:
    """Scale all weights of a unit; which those are, a gradient says, not the code's own table.

    They are those that still matter to the output once the other units of its kind write nothing.
    """
    alone = copy.deepcopy(model)
    for other in range(units_of(model, kind)):
        if other != index:
            written(alone, block, kind, other).zero_()
    alone(IDS).logits.square().sum().backward()
    adapter = family_of(model.config).adapter
    part, writer = (
        (adapter.attention, adapter.writers[0]) if kind == "head" else ("mlp", adapter.writers[1])
    )
    grads = dict(adapter.blocks(alone)[block].named_parameters())
    with torch.no_grad():
        for name, parameter in adapter.blocks(model)[block].named_parameters():
            if name.startswith(part) and not name.startswith(writer) and "norm" not in name:
                gradient = grads[name].grad
                assert gradient is not None
                parameter[gradient != 0] *= factor
    written(model, block, kind, index).mul_(factor)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("kept", [0.95, 0.7, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_a_pruned_model_is_the_teacher_with_units_silenced(
    case: str, kept: float, kernel: str, make: MakeCase
) -> None:
    teacher = make(case)
    units = choose_units(teacher, round(count(teacher) * kept))
    assert {unit.kind for unit in units} == {"head", "neuron"} or kept > 0.9
    pruned = prune(teacher, units)
    pruned.set_attn_implementation(kernel)
    with torch.no_grad():
        found, wanted = pruned(IDS).logits, silenced(teacher, units)(IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_pruned_model_generates_with_a_cache_as_without(case: str, make: MakeCase) -> None:
    teacher = make(case)
    pruned = prune(teacher, choose_units(teacher, count(teacher) * 2 // 3))
    found, wanted = (
        pruned.generate(IDS[:, :9], max_new_tokens=12, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(found, wanted)
    assert pruned.generation_config.eos_token_id == teacher.generation_config.eos_token_id


@settings(max_examples=25)
@given(
    case=st.sampled_from(sorted(CASES)),
    seed=st.integers(0, 50),
    kept=st.floats(0.4, 1.1),
)
def test_the_target_is_met_and_hardly_missed(
    case: str, seed: int, kept: float, make: MakeCase
) -> None:
    teacher = make(case, seed=seed)
    target = round(count(teacher) * kept)
    units = choose_units(teacher, target)
    left = count(teacher) - sum(unit.weights for unit in units)
    assert left <= target
    assert len(set(units)) == len(units)
    if units:
        assert target - left < min(unit.weights for unit in units)
    else:
        assert target >= count(teacher)
    gone = Counter((unit.block, unit.kind) for unit in units)
    assert all(lost < units_of(teacher, kind) for (_, kind), lost in gone.items())
    pruned = prune(teacher, units)
    assert count(pruned) == left == parameter_count(pruned.config)


@pytest.mark.parametrize("case", CASES)
def test_an_unreachable_target_is_a_users_mistake(case: str, make: MakeCase) -> None:
    teacher = make(case)
    units = rank_units(teacher)
    least = count(teacher) - sum(
        sum(sorted(u.weights for u in units if (u.block, u.kind) == place)[1:])
        for place in {(u.block, u.kind) for u in units}
    )
    assert count(prune(teacher, choose_units(teacher, least))) == least
    with pytest.raises(UserError, match="cannot be reached"):
        choose_units(teacher, least - 1)


@pytest.mark.parametrize("case", CASES)
def test_a_unit_counts_all_weights_that_go_with_it(case: str, make: MakeCase) -> None:
    teacher = make(case)
    for unit in (u for u in rank_units(teacher) if u.index == 0 and u.block == 1):
        pruned = prune(teacher, [unit])
        assert count(teacher) - count(pruned) == unit.weights
        changed = ChangedBlocks.of(pruned.config)
        lost = (share(teacher), 0) if unit.kind == "head" else (0, 1)
        heads = teacher.config.num_attention_heads
        assert changed.narrow == {1: NarrowSizes(heads - lost[0], NEURONS - lost[1])}


@pytest.mark.parametrize("case", CASES)
def test_the_weakest_units_rank_first(case: str, make: MakeCase) -> None:
    teacher = make(case)
    last = units_of(teacher, "head") - 1
    weaken(teacher, 2, "neuron", 77, 1e-4)
    weaken(teacher, 2, "head", last, 1e-3)
    ranked = rank_units(teacher)
    assert [(u.block, u.kind, u.index) for u in ranked[:2]] == [
        (2, "neuron", 77),
        (2, "head", last),
    ]
    assert len(ranked) == 3 * (last + 1 + NEURONS)
    strengths = [unit.strength for unit in ranked]
    assert strengths == sorted(strengths)


@pytest.mark.parametrize("case", CASES)
def test_equal_units_rank_by_their_place(case: str, make: MakeCase) -> None:
    teacher = make(case)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.fill_(0.5)
    ranked = rank_units(teacher)
    assert ranked == sorted(ranked, key=lambda u: (u.block, u.kind, u.index))


@pytest.mark.parametrize("case", CASES)
def test_the_result_does_not_depend_on_the_order_of_units(case: str, make: MakeCase) -> None:
    teacher = make(case)
    units = choose_units(teacher, count(teacher) * 2 // 3)
    one, other = prune(teacher, units), prune(teacher, units[::-1])
    assert listing(units) == listing(units[::-1])
    assert one.config.to_dict() == other.config.to_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("case", CASES)
def test_a_pruned_model_survives_its_folder(case: str, tmp_path: Path, make: MakeCase) -> None:
    teacher = make(case)
    pruned = prune(teacher, choose_units(teacher, count(teacher) // 2))
    assert not pruned.training
    pruned.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(read(IDS).logits, pruned(IDS).logits)


def test_nothing_to_remove_leaves_the_teacher(make: MakeCase) -> None:
    teacher = make("gpt2")
    assert choose_units(teacher, count(teacher)) == []
    same = prune(teacher, [])
    with torch.no_grad():
        assert torch.equal(same(IDS).logits, teacher(IDS).logits)


@pytest.mark.parametrize("case", CASES)
def test_a_compressed_model_is_not_pruned_again(case: str, make: MakeCase) -> None:
    sizes = CompactSizes(8, 1, 1, 8, POSITIONS)
    compact, _ = replace_block(make(case), 0, sizes, "paper", seed=1)
    for model in (compact, make(case, narrow={1: NarrowSizes(2, 1)})):
        with pytest.raises(UserError, match="compressed already"):
            choose_units(model, 1)
