"""Substitution and fine-tuning together: which block goes, what is learnt, what is matched."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from iskd.baselines.tuning import tune
from iskd.errors import UserError
from iskd.models import ChangedBlocks, CompactSizes, NarrowSizes
from iskd.runtime.workdir import WorkFolder
from iskd.settings import (
    AtOnceSettings,
    LearningRates,
    ObjectiveSettings,
    StartSettings,
    StepSettings,
    TrainingSettings,
    TuningSettings,
)
from iskd.training import order, steps
from iskd.training.steps import substitute_at_once, substitute_block
from tests.unit.conftest import POSITIONS, VOCABULARY, MakeModel

SIZES = CompactSizes(width=16, heads=2, blocks=1, mlp=24, positions=POSITIONS)
TRAINING = TrainingSettings(
    epochs=1,
    sequences=12,
    batch_size=4,
    learning_rate=LearningRates(compact=1e-2, rest=1e-3),
    optimizer="adamw",
    weight_decay=0.0,
    beta2=0.95,
    schedule="linear",
    warmup=0.0,
    clip=1.0,
    precision="float32",
)


STEP = StepSettings(
    training=TRAINING,
    objective=ObjectiveSettings(),
    start=StartSettings("paper"),
    warm_start=0.0,
    validation=0,
    block=1,
    as_published=False,
)
AT_ONCE = AtOnceSettings(
    training=TRAINING,
    objective=ObjectiveSettings(),
    start=StartSettings("paper"),
    warm_start=0.0,
    validation=0,
    blocks=[1, 0],
    first=None,
    curriculum=None,
)
PLAIN_TUNING = TuningSettings(TRAINING, ObjectiveSettings(), validation=0)


@pytest.fixture(scope="module")
def sequences() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, VOCABULARY, (40, 16), generator=generator, dtype=torch.int32)


@pytest.fixture
def teacher(tiny_model: MakeModel) -> Callable[[], PreTrainedModel]:
    return lambda: tiny_model("gpt2")


def nobody() -> PreTrainedModel:
    raise AssertionError("the teacher should not be loaded")


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_plain_step_never_asks_the_teacher(
    sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel]
) -> None:
    done = substitute_block(teacher(), nobody, SIZES, sequences, STEP, step=1, seed=3)
    assert done.facts["block"] == 1
    assert ChangedBlocks.of(done.model.config).compact == {1: SIZES}
    assert done.history[-1]["tokens"] == 12 * 16
    assert done.facts["parameters"] == done.model.num_parameters()


def test_a_step_is_the_same_when_made_again_and_another_with_another_seed(
    sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel]
) -> None:
    one, two, other = (
        substitute_block(teacher(), nobody, SIZES, sequences, STEP, step=1, seed=seed)
        for seed in (3, 3, 4)
    )
    assert same(one.model, two.model)
    assert one.history == two.history
    assert not same(one.model, other.model)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": ObjectiveSettings(next_token=0.5, kl=0.5, temperature=2.0)},
        {"objective": ObjectiveSettings(hidden=0.5)},
        {"objective": ObjectiveSettings(kl=0.1, teacher_precision="bfloat16")},
        {"warm_start": 0.25},
        {"start": StartSettings("zero_up")},
        {"start": StartSettings("pca", calibration=4)},
        {"start": StartSettings("least_squares", calibration=4)},
    ],
    ids=str,
)
def test_every_choice_changes_the_model_and_none_changes_the_tokens(
    changes: dict[str, Any], sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel]
) -> None:
    plain = substitute_block(teacher(), nobody, SIZES, sequences, STEP, step=1, seed=3)
    other = substitute_block(
        teacher(), teacher, SIZES, sequences, replace(STEP, **changes), step=1, seed=3
    )
    assert not same(plain.model, other.model)
    assert other.history[-1]["tokens"] == plain.history[-1]["tokens"] == 12 * 16


def test_the_warm_start_takes_its_share_and_comes_first(
    sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel]
) -> None:
    done = substitute_block(
        teacher(), teacher, SIZES, sequences, replace(STEP, warm_start=0.34), step=1, seed=3
    )
    phases = [row["phase"] for row in done.history]
    assert phases == sorted(phases, key=["warm_start", "joint"].index)
    last = [row for row in done.history if row["phase"] == "warm_start"][-1]
    assert last["tokens"] == 4 * 16
    assert [row["step"] for row in done.history] == list(range(1, 4))


def test_a_measured_order_takes_the_block_that_costs_least(
    sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    trained: list[torch.Tensor] = []
    real_tune = steps.fine_tune

    def recording(model: Any, sequences: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        trained.append(sequences)
        return real_tune(model, sequences, *args, **kwargs)

    class Walk(order.BlockWalk):
        def __init__(self, model: Any, sequences: torch.Tensor, *args: Any, **how: Any) -> None:
            seen.append(sequences)
            super().__init__(model, sequences, *args, **how)

    monkeypatch.setattr(steps, "fine_tune", recording)
    monkeypatch.setattr(order, "BlockWalk", Walk)
    settings = replace(
        STEP,
        block=None,
        validation=6,
        start=StartSettings("zero_up"),
        training=replace(TRAINING, sequences=None),
    )
    first = substitute_block(teacher(), nobody, SIZES, sequences, settings, step=1, seed=3)
    losses, measured_on = first.facts["loss_if_replaced"], first.facts["measured_on"]
    assert set(losses) == {"0", "1", "2"}
    finalists = {index: losses[index] for index, count in measured_on.items() if count == 6}
    assert len(finalists) == 2
    assert losses[str(first.facts["block"])] == min(finalists.values())
    # What decides on the order is not trained on.
    assert torch.equal(torch.cat(seen), sequences[-6:])
    assert len(trained[0]) == 34
    second = substitute_block(first.model, nobody, SIZES, sequences, settings, step=2, seed=3)
    assert set(second.facts["loss_if_replaced"]) == {"0", "1", "2"} - {str(first.facts["block"])}
    with pytest.raises(UserError, match="lower validation"):
        substitute_block(
            teacher(), nobody, SIZES, sequences, replace(settings, validation=40), step=1, seed=3
        )


def test_a_step_that_is_resumed_does_not_measure_again(
    sequences: torch.Tensor,
    teacher: Callable[[], PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    settings = replace(STEP, block=None, validation=6, start=StartSettings("least_squares", 4))
    sizes = NarrowSizes(heads=2, mlp=30)

    def step(work: WorkFolder | None) -> steps.Outcome:
        return substitute_block(
            teacher(), teacher, sizes, sequences, settings, step=1, seed=3, work=work
        )

    undisturbed = step(None)
    with monkeypatch.context() as killed:
        killed.setattr(steps, "fine_tune", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            step(WorkFolder(tmp_path / "work", {"of": "this job"}))
    monkeypatch.setattr(order, "trial_block", lambda *_, **__: pytest.fail("measured again"))
    resumed = step(WorkFolder(tmp_path / "work", {"of": "this job"}))
    assert resumed.facts == undisturbed.facts
    assert same(resumed.model, undisturbed.model)
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        step(WorkFolder(tmp_path / "work", {"of": "another job"}))


def test_the_published_arm_freezes_blocks_that_begin_alike(
    sequences: torch.Tensor, tiny_model: MakeModel
) -> None:
    published = CompactSizes(**{**vars(SIZES), "published": True})
    previous = tiny_model("gpt2", blocks=12)
    before = {name: value.clone() for name, value in previous.state_dict().items()}
    after = substitute_block(
        previous, nobody, published, sequences, replace(STEP, as_published=True), step=1, seed=3
    ).model.state_dict()
    moved = {
        int(name.split(".")[2])
        for name in before
        if name.startswith("transformer.h.")
        and not name.startswith("transformer.h.1.")
        and not torch.equal(before[name], after[name])
    }
    assert moved == set(range(12)) - {1, 10, 11}
    # The queries and keys of the new block stay as they were drawn; the values do not.
    inner = after["transformer.h.1.blocks.0.attn.c_attn.bias"]
    assert not inner[:32].any()
    assert inner[32:].any()


def test_at_once_replaces_all_and_matches_the_tokens_of_the_chain(
    sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel]
) -> None:
    settings = replace(AT_ONCE, blocks=[2, 0], warm_start=0.5)
    done = substitute_at_once(teacher, SIZES, sequences, settings, step=2, seed=3)
    assert sorted(ChangedBlocks.of(done.model.config).compact) == [0, 2]
    assert done.facts["blocks"] == [2, 0]
    assert done.history[-1]["tokens"] == 2 * 12 * 16
    warm = [row for row in done.history if row["phase"] == "warm_start"]
    assert warm[-1]["tokens"] == 12 * 16


def test_theseus_ends_with_the_compact_blocks_alone(
    sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel]
) -> None:
    plain = substitute_at_once(teacher, SIZES, sequences, AT_ONCE, step=2, seed=3)
    drawn, sure = (
        substitute_at_once(
            teacher, SIZES, sequences, replace(AT_ONCE, first=first, curriculum=0.6), step=2, seed=3
        )
        for first in (0.0, 1.0)
    )
    assert drawn.model.state_dict().keys() == plain.model.state_dict().keys()
    assert same(sure.model, plain.model)
    assert not same(drawn.model, plain.model)


def test_narrow_blocks_go_the_same_way(
    sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel]
) -> None:
    sizes = NarrowSizes(heads=2, mlp=30)
    settings = replace(STEP, start=StartSettings("teacher"))
    done = substitute_block(teacher(), nobody, sizes, sequences, settings, step=1, seed=3)
    assert ChangedBlocks.of(done.model.config).narrow == {1: sizes}


def test_a_baseline_sees_the_tokens_of_all_steps(
    sequences: torch.Tensor, teacher: Callable[[], PreTrainedModel]
) -> None:
    model = teacher()
    history = tune(model, nobody, sequences, PLAIN_TUNING, step=3, seed=3)
    assert history[-1]["tokens"] == 3 * 12 * 16
    with_teacher = replace(PLAIN_TUNING, objective=ObjectiveSettings(kl=1.0))
    taught = teacher()
    tune(taught, teacher, sequences, with_teacher, step=3, seed=3)
    assert not same(model, taught)


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_warm_start_changes_no_number_of_tokens(
    epochs: int, teacher: Callable[[], PreTrainedModel], sequences: torch.Tensor
) -> None:
    training = replace(TRAINING, epochs=epochs)
    tokens = {
        substitute_block(
            teacher(),
            teacher,
            SIZES,
            sequences,
            replace(STEP, training=training, warm_start=share),
            step=1,
            seed=3,
        ).history[-1]["tokens"]
        for share in (0.0, 0.5)
    }
    assert tokens == {epochs * 12 * 16}


def test_a_warm_start_must_leave_something(
    teacher: Callable[[], PreTrainedModel], sequences: torch.Tensor
) -> None:
    with pytest.raises(UserError, match="leaves none for the whole model"):
        substitute_block(
            teacher(), teacher, SIZES, sequences, replace(STEP, warm_start=0.99), step=1, seed=3
        )


@pytest.mark.parametrize("number", [None, 12])
def test_a_baseline_sees_the_text_of_a_reference_with_a_measured_order(
    number: int | None, teacher: Callable[[], PreTrainedModel], sequences: torch.Tensor
) -> None:
    training = replace(TRAINING, sequences=number)
    chain = [
        substitute_block(
            teacher(),
            teacher,
            SIZES,
            sequences,
            replace(STEP, block=None, validation=8, training=training),
            step=step,
            seed=3,
        ).history[-1]["tokens"]
        for step in (1, 2)
    ]
    matched = TuningSettings(training, ObjectiveSettings(), validation=8)
    seen = tune(teacher(), teacher, sequences, matched, step=2, seed=3)
    assert seen[-1]["tokens"] == sum(chain)
