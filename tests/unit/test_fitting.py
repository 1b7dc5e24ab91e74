"""How a training is fitted into memory changes what is kept, not what is learnt."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from iskd.errors import UserError
from iskd.models import replace_block
from iskd.settings import ObjectiveSettings
from iskd.training.loop import fine_tune
from iskd.training.objectives import Mixture
from tests.unit.test_fine_tune import FAMILIES, SETTINGS, SIZES, fresh, random_sequences


def trained(family: str = "gpt2", **how: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    model, block = replace_block(fresh(family), 1, SIZES, "paper", seed=1)
    history = fine_tune(
        model, random_sequences(10), replace(SETTINGS, **how), seed=3, compact=[block]
    )
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    return model.state_dict(), history


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_micro_batches_learn_what_the_batch_does(family: str, size: int) -> None:
    # In float32, and with plain gradients: Adam would make much of a rounding of a tiny gradient.
    (whole, curve), (parts, other) = trained(family), trained(family, micro_batch=size)
    for name, weight in whole.items():
        assert (weight - parts[name]).abs().max() < 2e-4, name
    for row, found in zip(curve, other, strict=True):
        assert found["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert {k: v for k, v in found.items() if k != "loss"} == {
            k: v for k, v in row.items() if k != "loss"
        }


def test_micro_batches_add_up_to_the_batchs_gradient() -> None:
    found: list[list[torch.Tensor]] = []

    def noted(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = optimizer.param_groups
        found.append([p.grad.clone() for group in groups for p in group["params"]])

    seen: list[int] = []

    def objective(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(batch["input_ids"]))
        logits = model(input_ids=batch["input_ids"]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"].flatten())

    settings = replace(SETTINGS, batch_size=8, clip=None)
    for size in (None, 3):
        seen.clear()
        handle = register_optimizer_step_pre_hook(noted)
        fine_tune(
            fresh(),
            random_sequences(8),
            replace(settings, micro_batch=size),
            seed=1,
            objective=objective,
        )
        handle.remove()
        # The first is the throw-away pass that counts FLOPs.
        assert seen[1:] == ([8] if size is None else [3, 3, 2])
    whole, parts = found
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_no_bit_and_counts_no_flops(family: str) -> None:
    (plain, curve), (again, other) = trained(family), trained(family, checkpointing=True)
    assert all(torch.equal(weight, again[name]) for name, weight in plain.items())
    assert curve == other


def test_checkpointing_goes_with_a_teacher_and_dropout() -> None:
    spec = ObjectiveSettings(next_token=0.5, kl=0.5, hidden=1.0, temperature=2.0)
    found = []
    for checkpointing in (False, True):
        model = fresh(dropout=0.2)
        objective = Mixture(spec, fresh())
        settings = replace(SETTINGS, checkpointing=checkpointing)
        fine_tune(model, random_sequences(8), settings, seed=1, objective=objective)
        found.append(model.state_dict())
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "full with 4 sequences at once; set micro_batch to less than 4"),
        ({"micro_batch": 2}, "full with 2 sequences at once; set micro_batch to less"),
        ({"micro_batch": 1}, "full with 1 sequences at once; set checkpointing ("),
        ({"micro_batch": 1, "checkpointing": True}, "at once; train on several GPUs"),
    ],
)
def test_full_memory_is_reported_with_what_takes_less(how: dict[str, Any], message: str) -> None:
    calls = 0

    def objective(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first is the throw-away pass
            raise torch.OutOfMemoryError
        loss: torch.Tensor = model(input_ids=batch["input_ids"]).logits.mean()
        return loss

    with pytest.raises(UserError, match=re.escape(message)):
        fine_tune(
            fresh(), random_sequences(8), replace(SETTINGS, **how), seed=1, objective=objective
        )


def saved_bytes(model: nn.Module, *, checkpointing: bool) -> int:
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=random_sequences(4).long(), use_cache=False).logits.sum()
    return sum(sizes.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_keeps_less(family: str) -> None:
    model, _ = replace_block(fresh(family), 1, SIZES, "paper", seed=1)
    plain = saved_bytes(model, checkpointing=False)
    assert saved_bytes(model, checkpointing=True) < plain
