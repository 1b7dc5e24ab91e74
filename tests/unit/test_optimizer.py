"""The optimiser's groups, on the real models' shapes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig, PreTrainedModel

from iskd.models import CompactSizes, compact_config, family_of, parameter_count
from iskd.settings import LearningRates, TrainingSettings
from iskd.training.optimizer import make_optimizer, parameter_groups, published_groups

GPT2_ORDER = [5, 7, 3, 9, 1, 11, 2, 10, 4, 8, 6, 0]
PHI_ORDER = [9, 1, 19, 15, 14, 7, 17, 8, 10, 11, 13, 20, 0, 4, 12, 18, 6, 21, 5, 2, 23, 3, 16, 22]
CASES = {
    "gpt2": (GPT2Config(), CompactSizes(128, 2, 2, 512, 1024), GPT2_ORDER),
    "phi": (PhiConfig(), CompactSizes(512, 1, 4, 2048, 2048), PHI_ORDER),
}
SETTINGS = TrainingSettings(
    epochs=1,
    batch_size=1,
    learning_rate=LearningRates(compact=1e-4, rest=2e-5),
    optimizer="adam",
    weight_decay=0.01,
    beta2=0.999,
    schedule="linear",
    warmup=0.0,
    clip=None,
    precision="float32",
)
STEPS = [(name, step) for name, (_, _, order) in CASES.items() for step in range(1, len(order) + 1)]


def on_meta(name: str, order: Sequence[int]) -> PreTrainedModel:
    config, sizes, _ = CASES[name]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(compact_config(config, order, sizes))


def groups_of(model: nn.Module, compact: Sequence[nn.Module]) -> list[dict[str, Any]]:
    return parameter_groups(model, compact, SETTINGS)


def check_groups(name: str, order: Sequence[int]) -> None:
    """Check the groups of the step that replaces the last block of ``order``."""
    model = on_meta(name, order)
    block = family_of(model.config).blocks(model)[order[-1]]
    groups = groups_of(model, [block])
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in model.parameters()})
    assert sum(p.numel() for g in groups for p in g["params"]) == parameter_count(model.config)
    # The very block just replaced, and not those whose number begins alike (1, 10, 11).
    fast = {id(p) for g in groups if g["lr"] == 1e-4 for p in g["params"]}
    assert fast == {id(p) for p in block.parameters()}


@pytest.mark.parametrize(("name", "step"), STEPS)
def test_at_every_step_each_parameter_is_in_exactly_one_group(name: str, step: int) -> None:
    check_groups(name, CASES[name][2][:step])


@settings(max_examples=12)
@given(name=st.sampled_from(sorted(CASES)), data=st.data())
def test_so_it_is_for_any_order(name: str, data: st.DataObject) -> None:
    blocks = len(CASES[name][2])
    order = data.draw(st.permutations(range(blocks)))
    check_groups(name, order[: data.draw(st.integers(1, blocks))])


@pytest.mark.parametrize("name", CASES)
def test_only_matrices_decay(name: str) -> None:
    model = on_meta(name, CASES[name][2][:2])
    block = family_of(model.config).blocks(model)[CASES[name][2][1]]
    groups = groups_of(model, [block])
    assert len(groups) == 4
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {
        (rate, decay) for rate in (1e-4, 2e-5) for decay in (0.01, 0.0)
    }
    for group in groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}


def test_tied_weights_are_trained_once() -> None:
    model = on_meta("gpt2", [5])
    tied = model.get_input_embeddings().weight
    assert tied is model.get_output_embeddings().weight
    groups = groups_of(model, [])
    assert sum(p is tied for group in groups for p in group["params"]) == 1


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(requires_grad=False)
    groups = groups_of(model, [model[0]])
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model[1].parameters()}
    assert {g["lr"] for g in groups} == {2e-5}


def test_the_whole_model_may_be_new() -> None:
    model = nn.Linear(3, 3)
    assert {g["lr"] for g in groups_of(model, [model])} == {1e-4}
    assert {g["lr"] for g in groups_of(model, [])} == {2e-5}


def test_embeddings_decay() -> None:
    model = on_meta("gpt2", [5])
    embeddings = {id(model.get_parameter(f"transformer.{name}.weight")) for name in ("wte", "wpe")}
    decaying = {id(p) for g in groups_of(model, []) if g["weight_decay"] for p in g["params"]}
    assert embeddings <= decaying


def published(name: str, index: int) -> tuple[set[int], list[dict[str, Any]]]:
    """The published code's groups with block ``index`` replaced, and which blocks they leave out.

    A block is left out if none of its parameters is in a group; all else has to be in one.
    """
    model = on_meta(name, [index])
    blocks = family_of(model.config).blocks(model)
    groups = published_groups(model, [blocks[index]], SETTINGS)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert [g["lr"] for g in groups] == [2e-5, 1e-4]
    assert {g["weight_decay"] for g in groups} == {0.01}
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in blocks[index].parameters()}
    left = {id(p) for p in model.parameters()} - set(grouped)
    out = {i for i, block in enumerate(blocks) if left & {id(p) for p in block.parameters()}}
    assert left == {id(p) for i in out for p in blocks[i].parameters()}
    return out, groups


@pytest.mark.parametrize(
    ("name", "index", "out"),
    [
        ("gpt2", 1, {10, 11}),
        ("gpt2", 0, set()),
        ("gpt2", 10, set()),
        ("phi", 1, set(range(10, 20))),
        ("phi", 2, set(range(20, 24))),
        ("phi", 3, set()),
    ],
)
def test_the_published_groups_leave_out_blocks_whose_number_begins_alike(
    name: str, index: int, out: set[int]
) -> None:
    assert published(name, index)[0] == out


def test_the_published_groups_leave_frozen_parameters_out() -> None:
    model = on_meta("gpt2", [3])
    model.get_input_embeddings().weight.requires_grad_(requires_grad=False)
    groups = published_groups(model, [family_of(model.config).blocks(model)[3]], SETTINGS)
    assert all(p.requires_grad for group in groups for p in group["params"])


def test_a_compact_block_that_cannot_be_trained_is_a_bug() -> None:
    model = on_meta("gpt2", [3])
    block = family_of(model.config).blocks(model)[3].requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match=r"no trainable parameter under 'transformer.h.3'"):
        published_groups(model, [block], SETTINGS)
    with pytest.raises(ValueError, match="no part of the model"):
        published_groups(model, [nn.Linear(1, 1)], SETTINGS)


def test_one_pass_over_the_weights_rounds_otherwise_and_learns_the_same() -> None:
    names: list[Literal["adam", "adamw"]] = ["adam", "adamw"]
    for name in names:
        torch.manual_seed(0)
        start, moved = torch.randn(50, 40), []
        steps = [torch.randn(50, 40) for _ in range(5)]
        for fused in (False, True):
            weight = nn.Parameter(start.clone())
            groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}]
            optimizer = make_optimizer(groups, replace(SETTINGS, optimizer=name, fused=fused))
            assert bool(optimizer.defaults["fused"]) == (fused or torch.cuda.is_available())
            for step in steps:
                weight.grad = step.clone()
                optimizer.step()
            moved.append(weight.detach())
        torch.testing.assert_close(*moved, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(moved[0], start)


def test_adam_adds_decay_to_the_gradient_and_adamw_takes_it_off_the_weight() -> None:
    moved = {}
    names: list[Literal["adam", "adamw"]] = ["adam", "adamw"]
    for name in names:
        weight = nn.Parameter(torch.full((2, 2), 4.0))
        weight.grad = torch.zeros(2, 2)
        groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}]
        make_optimizer(groups, replace(SETTINGS, optimizer=name)).step()
        moved[name] = weight[0, 0].item()
    assert moved["adamw"] == pytest.approx(4.0 * (1 - 0.1 * 0.5))
    assert moved["adam"] == pytest.approx(4.0 - 0.1)
