"""The student of distillation."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from iskd.baselines.blocks import keep_blocks, spread
from iskd.baselines.student import make_student
from iskd.errors import UserError
from iskd.models import NarrowSizes, family_of, replace_block
from iskd.models.recipes import block_parameters
from tests.unit.conftest import FAMILIES, POSITIONS, VOCABULARY, MakeModel

IDS = torch.arange(1, 40)[None]
SHAPE: dict[str, Any] = {"blocks": 2, "width": 16, "heads": 2, "mlp": None, "kv_heads": None}


def count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


def embeddings(model: PreTrainedModel) -> torch.Tensor:
    return model.get_input_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_has_its_own_shape_and_the_teachers_vocabulary(
    family: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family, tie_word_embeddings=True)
    teacher.generation_config.top_k = 7
    (student, facts), (same, _), (other, _) = (
        make_student(teacher, 1, start="scratch", shape=SHAPE, seed=seed) for seed in (1, 1, 2)
    )
    assert type(student) is type(teacher)
    config = student.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (2, 16, 2)
    assert (config.vocab_size, config.max_position_embeddings) == (VOCABULARY, POSITIONS)
    assert getattr(config, "num_key_value_heads", 2) == 2
    assert family_of(config).adapter.mlp_neurons(config) == 64
    assert student.get_output_embeddings().weight is embeddings(student)
    assert student.generation_config.top_k == 7
    assert torch.equal(embeddings(student), embeddings(same))
    assert not torch.equal(embeddings(student), embeddings(other))
    assert facts == {"start": "scratch", "blocks": 2, "taken": [], "parameters": count(student)}
    assert student(IDS).logits.shape == (1, 39, VOCABULARY)
    assert (teacher.config.num_hidden_layers, teacher.config.hidden_size) == (3, 32)


@pytest.mark.parametrize("family", ["phi", "llama", "mistral", "qwen2", "qwen3"])
def test_a_student_may_share_keys_and_values(family: str, tiny_model: MakeModel) -> None:
    shape = {"blocks": 5, "width": 32, "heads": 4, "mlp": 24, "kv_heads": 2}
    student, _ = make_student(tiny_model(family), 1, start="scratch", shape=shape, seed=1)
    assert student.config.num_key_value_heads == 2
    block = family_of(student.config).blocks(student)[4]
    assert block.get_parameter("self_attn.k_proj.weight").shape == (16, 32)
    assert family_of(student.config).adapter.mlp_neurons(student.config) == 24
    assert student(IDS).logits.shape == (1, 39, VOCABULARY)


@pytest.mark.parametrize(
    ("family", "change", "says"),
    [
        ("gpt2", {"kv_heads": 1}, "share no keys"),
        ("gpt2", {"width": 15}, "multiple of 2"),
        ("llama", {"width": 10}, "multiple of 4"),
        ("llama", {"heads": 4, "kv_heads": 3}, "must divide its 4 heads"),
    ],
)
def test_a_shape_that_does_not_fit(
    family: str, change: dict[str, int], says: str, tiny_model: MakeModel
) -> None:
    with pytest.raises(UserError, match=says):
        make_student(tiny_model(family), 1, start="scratch", shape={**SHAPE, **change}, seed=1)


@pytest.mark.parametrize("start", ["scratch", "alternate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_of_the_teachers_blocks_as_fit(
    family: str, start: Any, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family, blocks=5)
    block, whole = block_parameters(teacher.config, None), count(teacher)
    # Just enough for n blocks, and one parameter less than that.
    for reference, blocks in (
        (whole + 9 * block, 5),
        (whole, 5),
        (whole - 2 * block, 3),
        (whole - 2 * block - 1, 2),
        (whole - 4 * block, 1),
    ):
        student, facts = make_student(teacher, reference, start=start, shape=None, seed=1)
        assert facts["blocks"] == student.config.num_hidden_layers == blocks
        assert facts["parameters"] == count(student) == whole - (5 - blocks) * block
        assert student.config.hidden_size == teacher.config.hidden_size
    with pytest.raises(UserError, match=f"one block .* has {whole - 4 * block}:"):
        make_student(teacher, whole - 4 * block - 1, start=start, shape=None, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_alternate_blocks_starts_as_the_teacher_without_the_others(
    family: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family, blocks=5)
    reference = count(teacher) - 2 * block_parameters(teacher.config, None) + 1
    student, facts = make_student(teacher, reference, start="alternate", shape=None, seed=1)
    assert facts["taken"] == [0, 2, 4]
    assert type(student) is type(teacher)
    with torch.no_grad():
        wanted = keep_blocks(teacher, [0, 2, 4])(IDS).logits
        assert torch.equal(student(IDS).logits, wanted)
    found, wanted = (
        student.generate(IDS[:, :9], max_new_tokens=12, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_student_owes_the_teacher_no_weight(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    (student, facts), (same, _), (other, _) = (
        make_student(teacher, count(teacher), start="scratch", shape=None, seed=seed)
        for seed in (1, 1, 2)
    )
    assert facts["taken"] == []
    wanted = teacher.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
        assert value.shape == wanted[name].shape
        assert not torch.equal(value, wanted[name]), name
    assert not torch.equal(embeddings(student), embeddings(other))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_students_windows_are_the_teachers_at_the_same_depth(
    family: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family, blocks=4)
    window, full = "sliding_attention", "full_attention"
    teacher.config.layer_types = [window, window, full, full]
    reference = count(teacher) - 2 * block_parameters(teacher.config, None)
    shape = {**SHAPE, "blocks": 6}
    for given, start, wanted in (
        (None, "alternate", [window, full]),
        (None, "scratch", [window, full]),
        (shape, "scratch", [window] * 3 + [full] * 3),
    ):
        student, _ = make_student(
            teacher,
            reference,
            start=start,  # type: ignore[arg-type]
            shape=given,
            seed=1,
        )
        assert student.config.layer_types == wanted


def test_places_are_spread_from_the_first_to_the_last() -> None:
    # What huggingface/transformers' extract.py takes for DistilGPT2.
    assert spread(6, 12) == [0, 2, 4, 7, 9, 11]
    assert spread(1, 12) == [0]
    for blocks in range(2, 40):
        assert spread(blocks, blocks) == list(range(blocks))
        for n in range(2, blocks + 1):
            places = spread(n, blocks)
            assert (places[0], places[-1]) == (0, blocks - 1)
            gaps = {b - a for a, b in pairwise(places)}
            assert min(gaps) > 0
            assert max(gaps) - min(gaps) <= 1


def test_what_a_student_cannot_be_made_from(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    with pytest.raises(UserError, match="leave out shape"):
        make_student(teacher, count(teacher), start="alternate", shape=SHAPE, seed=1)
    narrow, _ = replace_block(teacher, 0, NarrowSizes(1, 1), "teacher", seed=1)
    for start in ("scratch", "alternate"):
        with pytest.raises(UserError, match="compressed already"):
            make_student(narrow, count(teacher), start=start, shape=None, seed=1)
