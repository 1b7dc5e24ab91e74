"""The losses: next token, and distillation from a teacher."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from iskd.training.objectives import Distillation, next_token_loss
from tests.unit.conftest import VOCABULARY, MakeModel

FAMILIES = ["gpt2", "phi"]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"input_ids": torch.randint(1, VOCABULARY, (3, 11), generator=generator)}


@pytest.fixture(params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tiny_model: MakeModel
) -> tuple[PreTrainedModel, PreTrainedModel]:
    return tiny_model(request.param, seed=1), tiny_model(request.param, seed=2)


Pair = tuple[PreTrainedModel, PreTrainedModel]
Batch = dict[str, torch.Tensor]


def test_next_token_loss_is_the_librarys_own(pair: Pair, batch: Batch) -> None:
    student, _ = pair
    wanted = student(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    torch.testing.assert_close(next_token_loss(student, batch), wanted)


def test_narrow_integers_are_taken_as_tokens(pair: Pair, batch: Batch) -> None:
    narrow = {"input_ids": batch["input_ids"].int()}
    assert torch.equal(next_token_loss(pair[0], narrow), next_token_loss(pair[0], batch))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_weight_zero_is_the_next_token_loss(pair: Pair, batch: Batch, temperature: float) -> None:
    student, teacher = pair
    loss = Distillation(teacher, temperature=temperature, weight=0.0)(student, batch)
    torch.testing.assert_close(loss, next_token_loss(student, batch))


def test_a_teacher_has_nothing_to_tell_itself(pair: Pair, batch: Batch) -> None:
    student, _ = pair
    loss = Distillation(copy.deepcopy(student), temperature=2.0, weight=1.0)(student, batch)
    assert abs(loss.item()) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_forward_and_a_mean_over_positions(
    pair: Pair, batch: Batch, temperature: float
) -> None:
    student, teacher = pair
    ids = batch["input_ids"]
    with torch.no_grad():
        p, q = (
            functional.softmax(m(ids).logits[:, :-1] / temperature, -1) for m in (teacher, student)
        )
    divergence = (p * (p.log() - q.log())).sum(-1).mean()
    mixed = 0.75 * next_token_loss(student, batch) + 0.25 * temperature**2 * divergence
    loss = Distillation(teacher, temperature=temperature, weight=0.25)(student, batch)
    torch.testing.assert_close(loss, mixed)
    # The direction matters: the reverse is another number.
    assert not torch.isclose((q * (q.log() - p.log())).sum(-1).mean(), divergence, rtol=1e-2)


def test_a_high_temperature_compares_centred_logits(pair: Pair, batch: Batch) -> None:
    """As T grows, T^2 KL tends to the variance of the logits' difference over twice the entries."""
    student, teacher = (model.double() for model in pair)
    ids = batch["input_ids"]
    with torch.no_grad():
        gap = (teacher(ids).logits - student(ids).logits)[:, :-1]
    limit = gap.var(-1, unbiased=False).mean() / 2
    # The objective computes in float32, where T^2 amplifies rounding: so a moderate T.
    loss = Distillation(teacher, temperature=100.0, weight=1.0)(student, batch)
    assert loss.item() == pytest.approx(limit.item(), rel=0.05)


def test_gradient_reaches_the_student_and_never_the_teacher(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = Distillation(teacher, temperature=1.5, weight=1.0)
    student.train()
    objective(student, batch).backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_gradient_is_that_of_the_softened_cross_entropy(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    ids = batch["input_ids"]
    Distillation(teacher, temperature=2.0, weight=1.0)(student, batch).backward()
    found = student.get_input_embeddings().weight.grad.clone()
    student.zero_grad()
    with torch.no_grad():
        target = functional.softmax(teacher(ids).logits[:, :-1] / 2, -1)
    own = functional.log_softmax(student(ids).logits[:, :-1] / 2, -1)
    (-4 * (target * own).sum(-1).mean()).backward()
    torch.testing.assert_close(found, student.get_input_embeddings().weight.grad)


def test_a_teacher_with_dropout_answers_the_same_each_time(
    tiny_model: MakeModel, batch: Batch
) -> None:
    teacher, student = tiny_model("gpt2", dropout=0.3), tiny_model("gpt2", seed=5)
    objective = Distillation(teacher.train(), temperature=1.0, weight=1.0)
    assert torch.equal(objective(student, batch), objective(student, batch))
