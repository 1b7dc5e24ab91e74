"""A training on a GPU: the same bits twice, autocast with float32 weights, memory as planned."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from iskd.models import replace_block, resolve_sizes
from iskd.settings import ObjectiveSettings
from iskd.training.loop import fine_tune
from iskd.training.memory import plan_memory
from iskd.training.objectives import Mixture
from tests.unit.test_fine_tune import SETTINGS

CONFIG = GPT2Config(n_layer=4, n_embd=256, n_head=8, vocab_size=5000, n_positions=256)
KL = ObjectiveSettings(next_token=0.5, kl=0.5, hidden=0.0, temperature=2.0)


def trained(**how: Any) -> tuple[GPT2LMHeadModel, list[dict[str, Any]]]:
    """Fine-tune a model with one compact block and a loss with a teacher."""
    torch.manual_seed(1)
    teacher = GPT2LMHeadModel(CONFIG).cuda()
    sequences = torch.randint(5000, (32, 256), generator=torch.Generator().manual_seed(2))
    model, block = replace_block(teacher, 1, resolve_sizes(CONFIG), "paper", seed=1)
    objective = Mixture(KL, teacher.to(torch.bfloat16))
    settings = replace(SETTINGS, batch_size=8, optimizer="adamw", **how)
    history = fine_tune(
        model, sequences.to(torch.int32), settings, seed=1, compact=[block], objective=objective
    )
    return model, history


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits_twice(precision: str) -> None:
    one, again = (trained(precision=precision)[0].state_dict() for _ in range(2))
    assert all(torch.equal(weight, again[name]) for name, weight in one.items())


def test_bfloat16_keeps_float32_weights_and_learns_as_much() -> None:
    (_, full), (model, half) = trained(), trained(precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert half[-1]["loss"] == pytest.approx(full[-1]["loss"], rel=0.02)


def test_the_optimiser_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    make = torch.optim.AdamW.__init__

    def noted(self: Any, *given: Any, **named: Any) -> None:
        calls.append(named)
        make(self, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", noted)
    trained()
    assert [named["fused"] for named in calls] == [True]


@pytest.mark.parametrize("how", [{"micro_batch": 2}, {"checkpointing": True}, {"compile": True}])
def test_what_fits_a_device_learns_the_same(how: dict[str, Any]) -> None:
    (_, plain), (_, fitted) = trained(), trained(**how)
    assert [row["loss"] for row in fitted] == pytest.approx(
        [row["loss"] for row in plain], rel=1e-3
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_as_planned(precision: Any, checkpointing: bool) -> None:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(CONFIG).cuda()
    sequences = torch.randint(5000, (24, 256), dtype=torch.int32)
    settings = replace(SETTINGS, batch_size=8, precision=precision, checkpointing=checkpointing)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    fine_tune(model, sequences, settings, seed=1)
    plan = plan_memory(model.config, 8, 256, precision=precision, checkpointing=checkpointing)
    # Kernels' own room comes on top: a tenth, as the plan's user can read.
    assert 0.8 < torch.cuda.max_memory_allocated() / plan.total < 1.2
