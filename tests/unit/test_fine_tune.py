"""One fine-tuning run: what it learns, how many steps it takes, and that it can be repeated."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import CompactSizes, replace_block
from iskd.models.scratch import fresh_model, scratch_config
from iskd.training import loop
from iskd.training.loop import TokenBlocks, fine_tune, write_history
from iskd.training.objectives import Distillation
from tests.unit.conftest import POSITIONS, VOCABULARY, MakeModel

SIZES = CompactSizes(width=16, heads=2, blocks=2, mlp=24, positions=POSITIONS)
SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": {"compact": 1e-3, "rest": 1e-4},
    "optimizer": "adam",
    "weight_decay": 0.0,
    "beta2": 0.999,
    "schedule": "linear",
    "warmup": 0.0,
    "clip": 1.0,
    "precision": "float32",
}


def random_blocks(count: int, length: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(1, VOCABULARY, (count, length), generator=generator, dtype=torch.int32)


def fresh(family: str = "gpt2", *, dropout: float = 0.0) -> PreTrainedModel:
    shape = {"blocks": 2, "width": 16, "heads": 2, "mlp": None}
    return fresh_model(
        scratch_config(
            family,
            shape,
            vocabulary=VOCABULARY,
            positions=POSITIONS,
            end_token=0,
            dropout=dropout,
        ),
        seed=1,
    )


class Watch:
    """Record, at every optimiser step, the rates, the size of the gradient and the batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rates: list[list[float]] = []
        self.norms: list[float] = []
        self.seen: list[torch.Tensor] = []
        make, loss = loop.make_optimizer, loop.next_token_loss

        def watched(
            name: str, groups: list[dict[str, Any]], *, beta2: float
        ) -> torch.optim.Optimizer:
            optimizer = make(name, groups, beta2=beta2)
            optimizer.register_step_pre_hook(self.record)
            return optimizer

        def objective(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            self.seen.append(batch["input_ids"].clone())
            return loss(model, batch)

        monkeypatch.setattr(loop, "make_optimizer", watched)
        self.objective = objective

    def record(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        self.norms.append(nn.utils.get_total_norm([g for g in gradients if g is not None]).item())


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def weights_after(seed: int, **changes: Any) -> dict[str, torch.Tensor]:
    model = fresh(dropout=0.2)
    fine_tune(model, random_blocks(10), SETTINGS | changes, seed=seed)
    return model.state_dict()


def test_the_seed_alone_decides_on_the_result() -> None:
    torch.manual_seed(11)
    one = weights_after(5)
    torch.manual_seed(12)
    torch.rand(3)
    again, other = weights_after(5), weights_after(6)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_order_of_the_data_follows_the_seed(watch: Watch) -> None:
    orders = []
    for seed in (1, 1, 2):
        watch.seen.clear()
        fine_tune(fresh(), random_blocks(20), SETTINGS, seed=seed, objective=watch.objective)
        orders.append(torch.cat(watch.seen))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], random_blocks(20).long())


def test_every_epoch_sees_every_sequence_once_in_a_new_order(watch: Watch) -> None:
    blocks = random_blocks(10)
    settings = SETTINGS | {"epochs": 3}
    fine_tune(fresh(), blocks, settings, seed=1, objective=watch.objective)
    assert [len(batch) for batch in watch.seen] == [4, 4, 2] * 3
    epochs = [torch.cat(watch.seen[i : i + 3]) for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(blocks.tolist())
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "steps"), [(8, 4, 1, 2), (10, 4, 3, 9), (3, 8, 2, 2), (1, 1, 1, 1)]
)
def test_a_run_takes_the_promised_number_of_steps(
    count: int, batch: int, epochs: int, steps: int, watch: Watch
) -> None:
    settings = SETTINGS | {"batch_size": batch, "epochs": epochs}
    history = fine_tune(fresh(), random_blocks(count), settings, seed=1)
    assert len(watch.rates) == steps
    assert [row["step"] for row in history] == list(range(1, steps + 1))
    assert history[-1]["tokens"] == count * 10 * epochs
    full = [min(batch, count - start) for start in range(0, count, batch)] * epochs
    assert [row["tokens"] for row in history] == [10 * sum(full[: n + 1]) for n in range(len(full))]


def test_a_long_run_reports_about_fifty_times(watch: Watch) -> None:
    settings = SETTINGS | {"batch_size": 1}
    history = fine_tune(fresh(), random_blocks(110, length=4), settings, seed=1)
    assert len(watch.rates) == 110
    assert [row["step"] for row in history] == list(range(2, 111, 2))


@pytest.mark.parametrize("family", ["gpt2", "phi"])
def test_both_rates_are_as_asked_at_the_first_step(
    family: str, tiny_model: MakeModel, watch: Watch
) -> None:
    model, block = replace_block(tiny_model(family), 1, SIZES, "xavier", seed=1)
    history = fine_tune(model, random_blocks(16), SETTINGS, seed=1, new=[block])
    assert sorted(set(watch.rates[0])) == [1e-4, 1e-3]
    assert sorted(set(watch.rates[2])) == pytest.approx([0.5e-4, 0.5e-3])
    assert history[0]["learning_rate"] == 1e-4


def test_one_step_of_adam_moves_each_weight_by_its_rate(tiny_model: MakeModel) -> None:
    """Adam's first step is the rate times the gradient's sign, so it shows who has which rate."""
    model, block = replace_block(tiny_model("gpt2"), 1, SIZES, "xavier", seed=1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    new = {id(p) for p in block.parameters()}
    fine_tune(model, random_blocks(4), SETTINGS, seed=1, new=[block])
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 if id(parameter) in new else 1e-4, rel=0.02), name


def test_linear_and_cosine_fall_to_zero_and_constant_stays(watch: Watch) -> None:
    shapes = {}
    for schedule in ("linear", "cosine", "constant"):
        watch.rates.clear()
        settings = SETTINGS | {"schedule": schedule}
        fine_tune(fresh(), random_blocks(40), settings, seed=1)
        shapes[schedule] = [rates[0] / 1e-4 for rates in watch.rates]
    assert shapes["linear"] == pytest.approx([1 - i / 10 for i in range(10)])
    assert shapes["constant"] == pytest.approx([1.0] * 10)
    assert shapes["cosine"][0] == pytest.approx(1.0)
    assert shapes["cosine"][5] == pytest.approx(0.5)
    assert shapes["cosine"][-1] < 0.05


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_warm_up_rises_to_the_asked_rate(schedule: str, watch: Watch) -> None:
    settings = SETTINGS | {"schedule": schedule, "warmup": 0.2}
    fine_tune(fresh(), random_blocks(40), settings, seed=1)
    assert [rates[0] / 1e-4 for rates in watch.rates[:3]] == pytest.approx([0.0, 0.5, 1.0])


def test_gradients_are_clipped_only_if_asked(watch: Watch) -> None:
    norms = {}
    for clip in (1e-3, None):
        watch.norms.clear()
        fine_tune(fresh(), random_blocks(4), SETTINGS | {"clip": clip}, seed=1)
        norms[clip] = watch.norms[0]
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert norms[None] is not None
    assert norms[None] > 0.1


@pytest.mark.parametrize("family", ["gpt2", "phi"])
def test_the_loss_falls_on_what_can_be_learnt(family: str) -> None:
    counting = (torch.arange(12)[None] + torch.arange(32)[:, None]) % (VOCABULARY - 1) + 1
    settings = SETTINGS | {
        "epochs": 6,
        "learning_rate": {"compact": 1e-2, "rest": 1e-2},
        "schedule": "constant",
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "beta2": 0.95,
    }
    model = fresh(family)
    history = fine_tune(model, counting.int(), settings, seed=1)
    assert history[0]["loss"] == pytest.approx(torch.tensor(VOCABULARY).log().item(), rel=0.05)
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert not model.training


def test_the_first_reported_loss_is_that_of_the_untouched_model() -> None:
    model, blocks = fresh(), random_blocks(6)
    with torch.no_grad():
        ids = blocks.long()
        wanted = model.eval()(ids, labels=ids).loss.item()
    history = fine_tune(model, blocks, SETTINGS | {"batch_size": 6}, seed=1)
    assert history[0]["loss"] == pytest.approx(wanted, rel=1e-5)


def test_an_objective_is_what_is_trained_on(tiny_model: MakeModel) -> None:
    teacher, student = tiny_model("gpt2"), fresh()
    objective = Distillation(teacher, temperature=1.0, weight=1.0)
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    blocks = random_blocks(6)
    with torch.no_grad():
        wanted = objective(student.eval(), {"input_ids": blocks.long()}).item()
    history = fine_tune(
        student, blocks, SETTINGS | {"batch_size": 6}, seed=1, new=[student], objective=objective
    )
    assert history[0]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert history[0]["learning_rate"] == 1e-3
    assert all(torch.equal(kept[name], value) for name, value in teacher.state_dict().items())


def test_autocast_keeps_the_weights_in_full_precision() -> None:
    model = fresh()
    history = fine_tune(model, random_blocks(4), SETTINGS | {"precision": "bfloat16"}, seed=1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[0]["loss"] == pytest.approx(torch.tensor(VOCABULARY).log().item(), rel=0.05)


def test_a_run_leaves_the_models_config_alone() -> None:
    model = fresh()
    before = model.config.to_dict()
    fine_tune(model, random_blocks(4), SETTINGS, seed=1)
    assert model.config.to_dict() == before


def test_the_largest_seed_of_a_config_times_a_thousand_works() -> None:
    fine_tune(fresh(), random_blocks(2), SETTINGS, seed=(2**31 - 1) * 1000 + 99)


def test_sequences_longer_than_the_model_takes_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"takes 48 positions.* have 49; lower corpus"):
        fine_tune(fresh(), random_blocks(2, length=49), SETTINGS, seed=1)


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fine_tune(fresh(), random_blocks(2), SETTINGS, seed=1)
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_tokens_come_as_long_integers() -> None:
    data = TokenBlocks(random_blocks(3))
    assert len(data) == 3
    assert data[1]["input_ids"].dtype == torch.int64
    assert data[1]["input_ids"].tolist() == random_blocks(3)[1].tolist()


def test_a_history_is_written_one_row_a_line(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.25}]
    write_history(rows, tmp_path / "history.jsonl")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert lines[0] == '{"loss": 2.5, "step": 1}'
