"""The block-local warm start: what it learns, what it touches, and that it can be repeated."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import CompactSizes, family_of, replace_block
from iskd.provenance.ledger import STATE_SECONDS
from iskd.runtime.workdir import WorkFolder
from iskd.settings import LearningRates, TrainingSettings
from iskd.training import loop
from iskd.training.warm_start import warm_start
from tests.unit.conftest import POSITIONS, VOCABULARY, MakeModel

FAMILIES = ["gpt2", "phi", "llama", "gpt_neox"]
SIZES = CompactSizes(width=16, heads=2, blocks=1, mlp=24, positions=POSITIONS)
SETTINGS = TrainingSettings(
    epochs=1,
    batch_size=4,
    learning_rate=LearningRates(compact=1e-2, rest=1e-4),
    optimizer="adam",
    weight_decay=0.0,
    beta2=0.999,
    schedule="linear",
    warmup=0.0,
    clip=1.0,
    precision="float32",
)


def random_sequences(count: int, length: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(1, VOCABULARY, (count, length), generator=generator, dtype=torch.int32)


def replaced(
    teacher: PreTrainedModel, index: int = 1, **changes: Any
) -> tuple[PreTrainedModel, nn.Module]:
    return replace_block(teacher, index, SIZES, "paper", 1, **changes)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def in_and_out(
    model: PreTrainedModel, index: int, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states before and after a block, in a full pass through its model."""
    seen: list[torch.Tensor] = []
    block = family_of(model.config).blocks(model)[index]
    handle = block.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    handle.remove()
    return seen[0], seen[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_below_that_of_leaving_the_block_out(
    family: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family)
    _, block = replaced(teacher)
    history = warm_start(block, teacher, 1, random_sequences(160), SETTINGS, seed=1)
    assert history[0]["loss"] > 1.0
    assert history[-1]["loss"] < 0.9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("index", [0, 2])
def test_the_first_loss_is_that_of_the_models_themselves(
    family: str, index: int, tiny_model: MakeModel
) -> None:
    """Up to the block the new model is the teacher, so its own block's output is what counts."""
    teacher = tiny_model(family)
    model, block = replaced(teacher, index)
    sequences = random_sequences(3)
    before, wanted = in_and_out(teacher, index, sequences.long())
    _, found = in_and_out(model, index, sequences.long())
    error = (found - wanted).square().mean() / (wanted - before).square().mean()
    history = warm_start(block, teacher, index, sequences, SETTINGS, seed=1)
    assert history[0]["loss"] == pytest.approx(error.item(), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_of_the_block_has_nothing_to_learn(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    block = copy.deepcopy(family_of(teacher.config).blocks(teacher)[1])
    history = warm_start(block, teacher, 1, random_sequences(4), SETTINGS, seed=1)
    assert history[0]["loss"] < 1e-9


def test_a_block_that_does_nothing_has_loss_one(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    _, block = replaced(teacher)
    with torch.no_grad():
        for parameter in block.get_submodule("up").parameters():
            parameter.zero_()
    history = warm_start(block, teacher, 1, random_sequences(4), SETTINGS, seed=1)
    assert history[0]["loss"] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_block_is_touched(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family, dropout=0.1).train()
    model, block = replaced(teacher)
    model.eval()
    kept, own, whole = state(teacher), state(block), state(model)
    prefix = next(name for name, module in model.named_modules() if module is block) + "."
    warm_start(block, teacher, 1, random_sequences(8), SETTINGS, seed=1)
    assert same(state(teacher), kept)
    assert all(not torch.equal(own[name], p.detach()) for name, p in block.named_parameters())
    for name, value in model.state_dict().items():
        assert name.startswith(prefix) or torch.equal(value, whole[name]), name
    assert all(p.grad is None for p in (*teacher.parameters(), *model.parameters()))
    assert all(p.requires_grad for p in teacher.parameters())
    assert all(m.training for m in teacher.modules())
    assert not any(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_the_seed_alone_decides_on_the_result(tiny_model: MakeModel) -> None:
    results = []
    for seed, noise in ((5, 1), (5, 2), (6, 1)):
        teacher = tiny_model("gpt2", dropout=0.2)
        _, block = replaced(teacher)
        torch.manual_seed(noise)
        warm_start(block, teacher, 1, random_sequences(10), SETTINGS, seed=seed)
        results.append(state(block))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_dropout_is_for_the_block_alone(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2", dropout=0.2).train()
    _, block = replaced(teacher)
    seen: dict[str, bool] = {}
    block.eval().register_forward_hook(lambda m, *_: seen.update(block=m.training))
    first = family_of(teacher.config).blocks(teacher)[0]
    first.register_forward_hook(lambda m, *_: seen.update(teacher=m.training))
    warm_start(block, teacher, 1, random_sequences(4), SETTINGS, seed=1)
    assert seen == {"block": True, "teacher": False}


def test_counting_changes_no_bit_of_the_result(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for counting in (True, False):
        if not counting:
            monkeypatch.setattr(loop, "count_flops", lambda *_: 0)
        teacher = tiny_model("gpt2", dropout=0.2)
        _, block = replaced(teacher)
        history = warm_start(block, teacher, 1, random_sequences(10), SETTINGS, seed=5)
        assert (history[-1]["flops"] > 0) == counting
        results.append(state(block))
    assert same(results[0], results[1])


def test_rows_say_how_far_it_is_and_what_it_cost(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    _, block = replaced(teacher)
    history = warm_start(block, teacher, 1, random_sequences(10), SETTINGS, seed=1)
    assert {row["phase"] for row in history} == {"warm_start"}
    assert [row["step"] for row in history] == [1, 2, 3]
    assert [row["tokens"] for row in history] == [40, 80, 100]
    assert history[-1]["flops"] * 4 == history[0]["flops"] * 10
    long = warm_start(
        block, teacher, 1, random_sequences(101), replace(SETTINGS, batch_size=1), seed=1
    )
    assert [row["step"] for row in long][-2:] == [100, 101]
    assert len(long) == 51


def test_blocks_after_the_one_in_question_cost_nothing(tiny_model: MakeModel) -> None:
    costs, handles = [], []
    for blocks in (2, 4):
        teacher = tiny_model("gpt2", blocks=blocks)
        _, block = replaced(teacher)
        for later in family_of(teacher.config).blocks(teacher)[2:]:
            handles.append(
                later.register_forward_pre_hook(
                    lambda *_: pytest.fail("a later block was computed")
                )
            )
        history = warm_start(block, teacher, 1, random_sequences(4), SETTINGS, seed=1)
        costs.append(history[-1]["flops"])
    assert costs[0] == costs[1]
    for handle in handles:
        handle.remove()
    deeper = warm_start(replaced(teacher, 3)[1], teacher, 3, random_sequences(4), SETTINGS, seed=1)
    # Two of the teacher's blocks more, and no other cost: 2 * tokens * weights + attention.
    assert deeper[-1]["flops"] - costs[0] == 4 * 2 * (2 * 10 * 12 * 32**2 + 4 * 10**2 * 32)


def test_the_rate_rises_over_a_twentieth_and_falls_to_nothing(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2", blocks=1)
    _, block = replaced(teacher, 0)
    history = warm_start(
        block, teacher, 0, random_sequences(40, length=4), replace(SETTINGS, batch_size=1), seed=1
    )
    rates = [row["learning_rate"] for row in history]
    assert rates[:3] == pytest.approx([0, 0.5e-2, 1e-2])
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert rates[21] == pytest.approx(0.5e-2, rel=0.1)
    assert 0 < rates[-1] < 1e-4


def test_the_first_step_has_the_rate_it_reports(tiny_model: MakeModel) -> None:
    """Adam's first update moves each weight by its rate."""
    teacher = tiny_model("gpt2")
    _, block = replaced(teacher)
    before = state(block)
    (row,) = warm_start(block, teacher, 1, random_sequences(4), SETTINGS, seed=1)
    moved = max((p.detach() - before[n]).abs().max().item() for n, p in block.named_parameters())
    assert moved == pytest.approx(row["learning_rate"], rel=0.02)


@pytest.mark.parametrize("clip", [1e-3, None])
def test_gradients_are_clipped_only_if_configured(
    clip: float | None, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    make = loop.make_optimizer

    def watched(groups: list[dict[str, Any]], given: TrainingSettings) -> torch.optim.Optimizer:
        optimizer = make(groups, given)
        optimizer.register_step_pre_hook(
            lambda *_: norms.append(
                nn.utils.get_total_norm(
                    [p.grad for g in groups for p in g["params"] if p.grad is not None]
                ).item()
            )
        )
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", watched)
    teacher = tiny_model("gpt2")
    warm_start(
        replaced(teacher)[1], teacher, 1, random_sequences(4), replace(SETTINGS, clip=clip), seed=1
    )
    assert (norms[0] == pytest.approx(1e-3, rel=1e-2)) == (clip is not None)


def test_a_killed_warm_start_goes_on_to_the_same_bits(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_SECONDS, "0")
    settings = replace(SETTINGS, precision="bfloat16")

    def start(work: WorkFolder | None, *, dies_at: int | None = None) -> Any:
        teacher = tiny_model("gpt2", dropout=0.2)
        model, block = replaced(teacher)
        calls = itertools.count()

        def die(*_: Any) -> None:
            if next(calls) == dies_at:
                raise KeyboardInterrupt

        block.register_forward_pre_hook(die)
        history = warm_start(block, teacher, 1, random_sequences(40), settings, seed=5, work=work)
        # What autocast had put in the place of the block's forward is gone.
        assert "forward" not in block.__dict__
        return state(model), history

    undisturbed = start(None)
    with pytest.raises(KeyboardInterrupt):
        start(WorkFolder(tmp_path / "work", {}), dies_at=6)
    work = WorkFolder(tmp_path / "work", {})
    model, history = start(work)
    assert work.resumed == [5]
    assert same(model, undisturbed[0])
    assert history == undisturbed[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_and_block_may_have_different_types(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    _, block = replaced(teacher)
    exact = warm_start(copy.deepcopy(block), teacher, 1, random_sequences(4), SETTINGS, seed=1)
    teacher.to(torch.bfloat16)
    coarse = warm_start(block, teacher, 1, random_sequences(4), SETTINGS, seed=1)
    assert coarse[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)
    assert coarse[0]["loss"] != exact[0]["loss"]
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in block.parameters()} == {torch.float32}


def test_autocast_is_for_the_block_alone(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    _, block = replaced(teacher)
    seen: dict[str, torch.dtype] = {}
    block.get_submodule("up").register_forward_hook(
        lambda _, args, out: seen.update(block=out.dtype)
    )
    mine = family_of(teacher.config).blocks(teacher)[0]
    mine.register_forward_hook(lambda _, args, out: seen.update(teacher=out.dtype))
    warm_start(
        block, teacher, 1, random_sequences(4), replace(SETTINGS, precision="bfloat16"), seed=1
    )
    assert seen == {"block": torch.bfloat16, "teacher": torch.float32}
    assert {p.dtype for p in block.parameters()} == {torch.float32}


@pytest.mark.parametrize("index", [-1, 3])
def test_a_block_that_does_not_exist_is_a_users_mistake(index: int, tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    with pytest.raises(UserError, match="does not exist: the model has blocks 0 to 2"):
        warm_start(nn.Linear(2, 2), teacher, index, random_sequences(1), SETTINGS, seed=1)


def test_sequences_longer_than_the_teacher_takes_are_a_users_mistake(tiny_model: MakeModel) -> None:
    with pytest.raises(UserError, match=r"takes 48 positions.* have 49"):
        warm_start(
            nn.Linear(2, 2), tiny_model("gpt2"), 1, random_sequences(1, 49), SETTINGS, seed=1
        )


def test_every_epoch_sees_every_sequence(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    _, block = replaced(teacher)
    history = warm_start(
        block, teacher, 1, random_sequences(6), replace(SETTINGS, epochs=3), seed=1
    )
    assert (history[-1]["step"], history[-1]["tokens"]) == (6, 3 * 6 * 10)


def test_a_start_that_diverges_is_a_users_mistake(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    _, block = replaced(teacher)
    with torch.no_grad():
        next(block.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="lower its learning_rate"):
        warm_start(block, teacher, 1, random_sequences(4), SETTINGS, seed=1)
