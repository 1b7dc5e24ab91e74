"""Structured L1 pruning, and the student of distillation."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from iskd.baselines.l1_pruning import Unit, choose_units, listing, prune, rank_units
from iskd.baselines.student import make_student
from iskd.errors import UserError
from iskd.models import NarrowSizes, family_of, parameter_count, replace_block
from iskd.models.sizes import ChangedBlocks, CompactSizes
from tests.unit.conftest import POSITIONS, VOCABULARY, MakeModel

FAMILIES = ["gpt2", "phi"]
HEADS, NEURONS, HEAD_SIZE = 4, 128, 8
IDS = torch.arange(1, 40)[None]


def count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def silenced(model: PreTrainedModel, units: list[Unit]) -> PreTrainedModel:
    """Keep the shape, but let the given units write nothing into the stream."""
    family = family_of(model.config)
    for unit in units:
        block = family.blocks(model)[unit.block]
        if unit.kind == "head":
            rows = slice(unit.index * HEAD_SIZE, (unit.index + 1) * HEAD_SIZE)
            if family.name == "gpt2":
                block.get_parameter("attn.c_proj.weight")[rows] = 0
            else:
                block.get_parameter("self_attn.dense.weight")[:, rows] = 0
        elif family.name == "gpt2":
            block.get_parameter("mlp.c_proj.weight")[unit.index] = 0
        else:
            block.get_parameter("mlp.fc2.weight")[:, unit.index] = 0
    return model


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("share", [0.95, 0.7, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_is_the_teacher_with_units_silenced(
    family: str, share: float, kernel: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family)
    units = choose_units(teacher, round(count(teacher) * share))
    assert {unit.kind for unit in units} == {"head", "neuron"} or share > 0.9
    pruned = prune(teacher, units)
    pruned.set_attn_implementation(kernel)
    with torch.no_grad():
        found, wanted = pruned(IDS).logits, silenced(teacher, units)(IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@settings(max_examples=25)
@given(
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 50),
    share=st.floats(0.25, 1.1),
    data=st.data(),
)
def test_the_target_is_met_and_hardly_missed(
    family: str, seed: int, share: float, data: st.DataObject, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family, seed=seed)
    target = round(count(teacher) * share)
    units = choose_units(teacher, target)
    left = count(teacher) - sum(unit.weights for unit in units)
    assert left <= target
    assert len(set(units)) == len(units)
    if units:
        assert target - left < min(unit.weights for unit in units)
    else:
        assert target >= count(teacher)
    per_block = [
        sum(u.block == b and u.kind == kind for u in units)
        for b in range(3)
        for kind in ("head", "neuron")
    ]
    assert all(gone < (HEADS, NEURONS)[i % 2] for i, gone in enumerate(per_block))
    pruned = prune(teacher, units)
    assert count(pruned) == left == parameter_count(pruned.config)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unreachable_target_is_a_users_mistake(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    units = rank_units(teacher)
    least = count(teacher) - sum(
        sum(sorted(u.weights for u in units if (u.block, u.kind) == place)[1:])
        for place in {(u.block, u.kind) for u in units}
    )
    assert count(prune(teacher, choose_units(teacher, least))) == least
    with pytest.raises(UserError, match="cannot be reached"):
        choose_units(teacher, least - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_unit_counts_all_weights_that_go_with_it(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    for unit in (u for u in rank_units(teacher) if u.index == 0 and u.block == 1):
        pruned = prune(teacher, [unit])
        assert count(teacher) - count(pruned) == unit.weights
        changed = ChangedBlocks.of(pruned.config)
        lost = (1, 0) if unit.kind == "head" else (0, 1)
        assert changed.narrow == {1: NarrowSizes(HEADS - lost[0], NEURONS - lost[1])}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weakest_units_rank_first(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    block = family_of(teacher.config).blocks(teacher)[2]
    with torch.no_grad():
        if family == "gpt2":
            for fused_part, axis in (("c_attn.weight", 1), ("c_attn.bias", 0)):
                fused = block.get_parameter(f"attn.{fused_part}")
                for third in range(3):
                    fused.narrow(axis, third * 32 + 3 * HEAD_SIZE, HEAD_SIZE).mul_(1e-3)
            block.get_parameter("attn.c_proj.weight")[3 * HEAD_SIZE :].mul_(1e-3)
            block.get_parameter("mlp.c_fc.weight")[:, 77].mul_(1e-4)
            block.get_parameter("mlp.c_fc.bias")[77].mul_(1e-4)
            block.get_parameter("mlp.c_proj.weight")[77].mul_(1e-4)
        else:
            for name in ("q_proj", "k_proj", "v_proj"):
                for part in ("weight", "bias"):
                    block.get_parameter(f"self_attn.{name}.{part}")[3 * HEAD_SIZE :].mul_(1e-3)
            block.get_parameter("self_attn.dense.weight")[:, 3 * HEAD_SIZE :].mul_(1e-3)
            block.get_parameter("mlp.fc1.weight")[77].mul_(1e-4)
            block.get_parameter("mlp.fc1.bias")[77].mul_(1e-4)
            block.get_parameter("mlp.fc2.weight")[:, 77].mul_(1e-4)
    ranked = rank_units(teacher)
    assert [(u.block, u.kind, u.index) for u in ranked[:2]] == [(2, "neuron", 77), (2, "head", 3)]
    assert len(ranked) == 3 * (HEADS + NEURONS)
    strengths = [unit.strength for unit in ranked]
    assert strengths == sorted(strengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_units_rank_by_their_place(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.fill_(0.5)
    ranked = rank_units(teacher)
    assert ranked == sorted(ranked, key=lambda u: (u.block, u.kind, u.index))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_does_not_depend_on_the_order_of_units(
    family: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family)
    units = choose_units(teacher, count(teacher) * 2 // 3)
    one, other = prune(teacher, units), prune(teacher, units[::-1])
    assert listing(units) == listing(units[::-1])
    assert one.config.to_dict() == other.config.to_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_survives_its_folder(
    family: str, tmp_path: Path, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family)
    pruned = prune(teacher, choose_units(teacher, count(teacher) // 2))
    assert not pruned.training
    pruned.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(read(IDS).logits, pruned(IDS).logits)


def test_nothing_to_remove_leaves_the_teacher(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    assert choose_units(teacher, count(teacher)) == []
    same = prune(teacher, [])
    with torch.no_grad():
        assert torch.equal(same(IDS).logits, teacher(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compressed_model_is_not_pruned_again(family: str, tiny_model: MakeModel) -> None:
    sizes = CompactSizes(8, 1, 1, 8, POSITIONS)
    compact, _ = replace_block(tiny_model(family), 0, sizes, "xavier", seed=1)
    for model in (compact, tiny_model(family, narrow={1: NarrowSizes(1, 1)})):
        with pytest.raises(UserError, match="compressed already"):
            choose_units(model, 1)


def test_heads_that_share_keys_and_values_are_refused(tiny_model: MakeModel) -> None:
    with pytest.raises(UserError, match="share keys and values"):
        choose_units(tiny_model("phi", num_key_value_heads=2), 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_has_its_own_shape_and_the_teachers_vocabulary(
    family: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family)
    shape = {"blocks": 2, "width": 16, "heads": 2, "mlp": None}
    student, same, other = (make_student(teacher, shape, seed) for seed in (1, 1, 2))
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 16, 2)
    assert (config.vocab_size, config.max_position_embeddings) == (VOCABULARY, POSITIONS)
    assert family_of(config).mlp_neurons(config) == 64
    first, second, third = (m.get_input_embeddings().weight for m in (student, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert student(IDS).logits.shape == (1, 39, VOCABULARY)
