"""One fine-tuning run: what it learns, how many updates it takes, and that it can be repeated."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import CompactSizes, replace_block
from iskd.models.scratch import fresh_model, scratch_config
from iskd.settings import LearningRates, ObjectiveSettings, TrainingSettings
from iskd.training import loop, objectives
from iskd.training.chunked import LARGE_VOCABULARY
from iskd.training.curve import joined, write_history
from iskd.training.flops import count_flops
from iskd.training.loop import fine_tune
from iskd.training.objectives import Mixture, next_token_loss
from iskd.training.optimizer import published_groups
from iskd.training.trainer import TokenSequences
from tests.unit.conftest import POSITIONS, VOCABULARY, MakeModel

FAMILIES = ["gpt2", "phi", "llama", "gpt_neox"]
SIZES = CompactSizes(width=16, heads=2, blocks=2, mlp=24, positions=POSITIONS)
SETTINGS = TrainingSettings(
    epochs=1,
    batch_size=4,
    learning_rate=LearningRates(compact=1e-3, rest=1e-4),
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
    """Record, at every optimiser update, the rates, the size of the gradient and the batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rates: list[list[float]] = []
        self.norms: list[float] = []
        self.seen: list[torch.Tensor] = []
        make, loss, count = loop.make_optimizer, loop.next_token_loss, loop.count_flops

        def watched(groups: list[dict[str, Any]], given: TrainingSettings) -> torch.optim.Optimizer:
            optimizer = make(groups, given)
            optimizer.register_step_pre_hook(self.record)
            return optimizer

        def objective(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            self.seen.append(batch["input_ids"].clone())
            return loss(model, batch)

        def counted(*args: Any) -> int:
            """Forget the batch of the throw-away pass: nothing is learnt from it."""
            before = len(self.seen)
            flops = count(*args)
            del self.seen[before:]
            return flops

        monkeypatch.setattr(loop, "make_optimizer", watched)
        monkeypatch.setattr(loop, "count_flops", counted)
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
    fine_tune(model, random_sequences(10), replace(SETTINGS, **changes), seed=seed)
    return model.state_dict()


def test_the_seed_alone_decides_on_the_result() -> None:
    torch.manual_seed(11)
    one = weights_after(5)
    torch.manual_seed(12)
    torch.rand(3)
    again, other = weights_after(5), weights_after(6)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_gpu_must_sum_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch is told only to warn, attention's backward pass has none there."""
    loop.make_deterministic(1)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        loop.make_deterministic(1)
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    loop.make_deterministic(1)


def test_the_order_of_the_data_follows_the_seed(watch: Watch) -> None:
    orders = []
    for seed in (1, 1, 2):
        watch.seen.clear()
        fine_tune(fresh(), random_sequences(20), SETTINGS, seed=seed, objective=watch.objective)
        orders.append(torch.cat(watch.seen))
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], random_sequences(20).long())


def test_every_epoch_sees_every_sequence_once_in_a_new_order(watch: Watch) -> None:
    sequences = random_sequences(10)
    settings = replace(SETTINGS, epochs=3)
    fine_tune(fresh(), sequences, settings, seed=1, objective=watch.objective)
    assert [len(batch) for batch in watch.seen] == [4, 4, 2] * 3
    epochs = [torch.cat(watch.seen[i : i + 3]) for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(sequences.tolist())
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "updates"),
    [(8, 4, 1, 2), (10, 4, 3, 9), (3, 8, 2, 2), (1, 1, 1, 1)],
)
def test_a_run_takes_the_promised_number_of_steps(
    count: int, batch: int, epochs: int, updates: int, watch: Watch
) -> None:
    settings = replace(SETTINGS, batch_size=batch, epochs=epochs)
    history = fine_tune(fresh(), random_sequences(count), settings, seed=1)
    assert len(watch.rates) == updates
    assert [row["step"] for row in history] == list(range(1, updates + 1))
    assert history[-1]["tokens"] == count * 10 * epochs
    full = [min(batch, count - start) for start in range(0, count, batch)] * epochs
    assert [row["tokens"] for row in history] == [10 * sum(full[: n + 1]) for n in range(len(full))]


def test_the_last_step_is_always_reported() -> None:
    settings = replace(SETTINGS, batch_size=1)
    history = fine_tune(fresh(), random_sequences(101, length=4), settings, seed=1)
    assert [row["step"] for row in history][-2:] == [100, 101]
    assert history[-1]["tokens"] == 404


def test_a_long_run_reports_about_fifty_times(watch: Watch) -> None:
    settings = replace(SETTINGS, batch_size=1)
    history = fine_tune(fresh(), random_sequences(110, length=4), settings, seed=1)
    assert len(watch.rates) == 110
    assert [row["step"] for row in history] == list(range(2, 111, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_rates_are_as_configured_at_the_first_update(
    family: str, tiny_model: MakeModel, watch: Watch
) -> None:
    model, block = replace_block(tiny_model(family), 1, SIZES, "paper", seed=1)
    history = fine_tune(model, random_sequences(16), SETTINGS, seed=1, compact=[block])
    assert sorted(set(watch.rates[0])) == [1e-4, 1e-3]
    assert sorted(set(watch.rates[2])) == pytest.approx([0.5e-4, 0.5e-3])
    assert history[0]["learning_rate"] == 1e-4


def test_one_update_of_adam_moves_each_weight_by_its_rate(tiny_model: MakeModel) -> None:
    """Adam's first update is the rate times the gradient's sign, so it shows who has which rate."""
    model, block = replace_block(tiny_model("gpt2"), 1, SIZES, "paper", seed=1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    new = {id(p) for p in block.parameters()}
    fine_tune(model, random_sequences(4), SETTINGS, seed=1, compact=[block])
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 if id(parameter) in new else 1e-4, rel=0.02), name


def test_linear_and_cosine_fall_to_zero_and_constant_stays(watch: Watch) -> None:
    shapes = {}
    for schedule in ("linear", "cosine", "constant"):
        watch.rates.clear()
        settings = replace(SETTINGS, schedule=schedule)
        fine_tune(fresh(), random_sequences(40), settings, seed=1)
        shapes[schedule] = [rates[0] / 1e-4 for rates in watch.rates]
    assert shapes["linear"] == pytest.approx([1 - i / 10 for i in range(10)])
    assert shapes["constant"] == pytest.approx([1.0] * 10)
    assert shapes["cosine"][0] == pytest.approx(1.0)
    assert shapes["cosine"][5] == pytest.approx(0.5)
    assert shapes["cosine"][-1] < 0.05


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_warm_up_rises_to_the_configured_rate(schedule: Any, watch: Watch) -> None:
    settings = replace(SETTINGS, schedule=schedule, warmup=0.2)
    fine_tune(fresh(), random_sequences(40), settings, seed=1)
    assert [rates[0] / 1e-4 for rates in watch.rates[:3]] == pytest.approx([0.0, 0.5, 1.0])


def test_gradients_are_clipped_only_if_configured(watch: Watch) -> None:
    norms = {}
    for clip in (1e-3, None):
        watch.norms.clear()
        fine_tune(fresh(), random_sequences(4), replace(SETTINGS, clip=clip), seed=1)
        norms[clip] = watch.norms[0]
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert norms[None] is not None
    assert norms[None] > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_on_what_can_be_learnt(family: str) -> None:
    counting = (torch.arange(12)[None] + torch.arange(32)[:, None]) % (VOCABULARY - 1) + 1
    settings = replace(
        SETTINGS,
        epochs=6,
        learning_rate=LearningRates(compact=1e-2, rest=1e-2),
        schedule="constant",
        optimizer="adamw",
        weight_decay=0.01,
        beta2=0.95,
    )
    model = fresh(family)
    history = fine_tune(model, counting.int(), settings, seed=1)
    assert history[0]["loss"] == pytest.approx(torch.tensor(VOCABULARY).log().item(), rel=0.05)
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert not model.training


def test_the_first_reported_loss_is_that_of_the_untouched_model() -> None:
    model, sequences = fresh(), random_sequences(6)
    with torch.no_grad():
        ids = sequences.long()
        wanted = model.eval()(ids, labels=ids).loss.item()
    history = fine_tune(model, sequences, replace(SETTINGS, batch_size=6), seed=1)
    assert history[0]["loss"] == pytest.approx(wanted, rel=1e-5)


def test_an_objective_is_what_is_trained_on(tiny_model: MakeModel) -> None:
    teacher, student = tiny_model("gpt2"), fresh()
    objective = Mixture(
        ObjectiveSettings(next_token=0.0, kl=1.0, hidden=0.0, temperature=1.0), teacher
    )
    kept = {name: value.clone() for name, value in teacher.state_dict().items()}
    sequences = random_sequences(6)
    with torch.no_grad():
        wanted = objective(student.eval(), {"input_ids": sequences.long()}).item()
        next_token = next_token_loss(student, {"input_ids": sequences.long()}).item()
    history = fine_tune(
        student,
        sequences,
        replace(SETTINGS, batch_size=6, micro_batch=2),
        seed=1,
        compact=[student],
        objective=objective,
    )
    assert history[0]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert history[0]["learning_rate"] == 1e-3
    # The curve has the next-token loss, too: what is compared with other arms.
    assert history[0]["next_token"] == pytest.approx(next_token, rel=1e-5)
    assert all(torch.equal(kept[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_large_vocabulary_learns_the_same_without_logits(
    precision: Any, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves, flops = [], []
    for large in (LARGE_VOCABULARY, 2):
        monkeypatch.setattr(objectives, "LARGE_VOCABULARY", large)
        objective = Mixture(ObjectiveSettings(next_token=0.5, kl=0.5), tiny_model("gpt2"))
        settings = replace(SETTINGS, precision=precision, micro_batch=2, epochs=3)
        history = fine_tune(fresh(), random_sequences(10), settings, seed=1, objective=objective)
        curves.append([row["loss"] for row in history])
        flops.append(history[-1]["flops"])
    tolerance = 1e-5 if precision == "float32" else 2e-2
    assert curves[1] == pytest.approx(curves[0], rel=tolerance)
    assert curves[1] != curves[0]
    # Of each sequence the last position has no next token: its logits are not worked out.
    assert flops[1] == pytest.approx(flops[0], rel=0.1)
    assert flops[1] < flops[0]


def test_parameters_may_be_grouped_as_the_published_code_does(tiny_model: MakeModel) -> None:
    """The published code's: with block 1 replaced, block 10 stays as it is."""
    model, block = replace_block(tiny_model("gpt2", blocks=11, width=16), 1, SIZES, "paper", 1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    history = fine_tune(
        model, random_sequences(4), SETTINGS, seed=1, compact=[block], grouping=published_groups
    )
    assert history[0]["learning_rate"] == 1e-4
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - before[name]).abs().max().item()
        rate = 1e-3 if name.startswith("transformer.h.1.") else 1e-4
        rate = 0.0 if name.startswith("transformer.h.10.") else rate
        assert moved == pytest.approx(rate, rel=0.02), name


def test_a_step_is_announced_before_its_batch_is_seen(watch: Watch) -> None:
    calls = []

    def on_update(update: int, total: int) -> None:
        calls.append((update, total, len(watch.seen), len(watch.rates)))

    fine_tune(
        fresh(),
        random_sequences(10),
        SETTINGS,
        seed=1,
        objective=watch.objective,
        on_update=on_update,
    )
    assert calls == [(0, 3, 0, 0), (1, 3, 1, 1), (2, 3, 2, 2)]


def hand_count(model: PreTrainedModel, length: int) -> int:
    """FLOPs of a forward pass over one sequence through a GPT-2 without compact blocks.

    Twice the weights for each token, and twice the two products of attention.
    """
    config = model.config
    width, blocks = config.n_embd, config.n_layer
    weights = blocks * (4 * width**2 + 2 * width * config.n_inner) + width * config.vocab_size
    return 2 * length * weights + blocks * 4 * length**2 * width


def test_flops_are_those_counted_by_hand() -> None:
    model = fresh()
    history = fine_tune(model, random_sequences(10), replace(SETTINGS, epochs=2), seed=1)
    # The backward pass costs twice the forward one; the batches have 4, 4 and 2 sequences.
    wanted = 3 * hand_count(model, 10)
    assert [row["flops"] for row in history] == [wanted * n for n in (4, 8, 10, 14, 18, 20)]
    assert {row["phase"] for row in history} == {"joint"}


def test_the_teachers_forward_pass_is_counted(tiny_model: MakeModel) -> None:
    model, teacher = fresh(), tiny_model("gpt2")
    objective = Mixture(ObjectiveSettings(next_token=0.5, kl=0.5), teacher)
    history = fine_tune(model, random_sequences(4), SETTINGS, seed=1, objective=objective)
    assert history[0]["flops"] == 4 * (3 * hand_count(model, 10) + hand_count(teacher, 10))


def test_flops_are_counted_once_for_each_variant_of_the_model(watch: Watch) -> None:
    model = fresh()

    def longer(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = watch.objective(model, batch)
        return loss + watch.objective(model, batch) if variant[-1] else loss

    variant: list[bool] = []

    def on_update(update: int, total: int) -> bool:
        variant.append(update % 2 == 1)
        return variant[-1]

    history = fine_tune(
        model, random_sequences(16), SETTINGS, seed=1, objective=longer, on_update=on_update
    )
    one = 4 * 3 * hand_count(model, 10)
    assert [row["flops"] for row in history] == [one, 3 * one, 4 * one, 6 * one]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_counting_changes_no_bit_of_the_result(
    family: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, rows = [], []
    for counting in (True, False):
        if not counting:
            monkeypatch.setattr(loop, "count_flops", lambda *_: 0)
        model = fresh(family, dropout=0.2)
        settings = replace(SETTINGS, precision=precision)
        history = fine_tune(
            model, random_sequences(10), settings, seed=3, on_update=lambda update, _: update
        )
        rows.append([row | {"flops": 0} for row in history])
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
        assert (history[-1]["flops"] > 0) == counting
    assert rows[0] == rows[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_counting_leaves_gradients_and_random_states_as_they_were() -> None:
    layer = nn.Linear(3, 5, bias=False)
    layer.weight.grad = torch.full((5, 3), 7.0)
    state = torch.get_rng_state()

    def run() -> torch.Tensor:
        loss: torch.Tensor = layer(torch.rand(2, 3)).sum()
        return loss

    # Forward, and the gradient of the weight; the input needs none.
    assert count_flops(run, layer.parameters()) == 2 * (2 * 2 * 3 * 5)
    assert torch.equal(layer.weight.grad, torch.full((5, 3), 7.0))
    assert torch.equal(torch.get_rng_state(), state)


def test_phases_are_joined_with_running_totals() -> None:
    first = [
        {"phase": "warm_start", "step": 1, "tokens": 40, "flops": 7, "loss": 0.9},
        {"phase": "warm_start", "step": 3, "tokens": 100, "flops": 20, "loss": 0.5},
    ]
    second = [{"phase": "joint", "step": 2, "tokens": 80, "flops": 50, "loss": 3.0}]
    third = [{"phase": "joint", "step": 1, "tokens": 1, "flops": 1, "loss": 2.0}]
    rows = joined(first, [], second, third)
    assert [row["phase"] for row in rows] == ["warm_start", "warm_start", "joint", "joint"]
    assert [row["step"] for row in rows] == [1, 3, 5, 6]
    assert [row["tokens"] for row in rows] == [40, 100, 180, 181]
    assert [row["flops"] for row in rows] == [7, 20, 70, 71]
    assert [row["loss"] for row in rows] == [0.9, 0.5, 3.0, 2.0]
    assert second[0]["step"] == 2
    assert joined() == []
    assert joined([], second) == second


def test_autocast_keeps_the_weights_in_full_precision() -> None:
    model = fresh()
    history = fine_tune(model, random_sequences(4), replace(SETTINGS, precision="bfloat16"), seed=1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[0]["loss"] == pytest.approx(torch.tensor(VOCABULARY).log().item(), rel=0.05)


def test_a_run_leaves_the_models_config_alone() -> None:
    model = fresh()
    before = model.config.to_dict()
    fine_tune(model, random_sequences(4), SETTINGS, seed=1)
    assert model.config.to_dict() == before


def test_the_largest_seed_of_a_config_times_a_thousand_works() -> None:
    largest = (2**31 - 1) * 1000 + 99
    losses = [
        [line["loss"] for line in fine_tune(fresh(), random_sequences(2), SETTINGS, seed=largest)]
        for _ in range(2)
    ]
    assert losses[0] == losses[1] != []
    assert torch.tensor(losses).isfinite().all()


def test_sequences_longer_than_the_model_takes_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"takes 48 positions.* have 49; lower corpus"):
        fine_tune(fresh(), random_sequences(2, length=49), SETTINGS, seed=1)


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    fine_tune(fresh(), random_sequences(2), SETTINGS, seed=1)
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_tokens_come_as_long_integers() -> None:
    data = TokenSequences(random_sequences(3))
    assert len(data) == 3
    assert data[1]["input_ids"].dtype == torch.int64
    assert data[1]["input_ids"].tolist() == random_sequences(3)[1].tolist()


def test_a_history_is_written_one_row_a_line(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.25}]
    write_history(rows, tmp_path / "history.jsonl")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert lines[0] == '{"loss": 2.5, "step": 1}'


def test_a_run_that_diverges_is_a_users_mistake_and_no_perfect_result() -> None:
    calls = iter(range(1000))

    def objective(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = loop.next_token_loss(model, inputs)
        return loss * float("nan") if next(calls) > 4 else loss

    with pytest.raises(
        UserError, match=r"step \d+ of 10: the loss is nan.*lower its learning_rate"
    ):
        fine_tune(fresh(), random_sequences(40), SETTINGS, seed=1, objective=objective)


def test_weights_that_are_no_numbers_are_not_handed_on() -> None:
    def objective(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        # A loss of 0 more, with a gradient that is infinity times 0.
        extra = (next(model.parameters()).sum() * 0).abs().sqrt()
        return loop.next_token_loss(model, inputs) + extra

    with pytest.raises(UserError, match="the weights are no numbers"):
        fine_tune(fresh(), random_sequences(4), SETTINGS, seed=1, objective=objective)
