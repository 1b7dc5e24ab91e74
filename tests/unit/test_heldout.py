"""Held-out loss against a straight recomputation."""

import math
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from iskd.errors import UserError
from iskd.evaluation.heldout import score_sequences
from iskd.evaluation.losses import heldout_metrics
from iskd.evaluation.metric import Metric


def heldout_loss(model: GPT2LMHeadModel, sequences: torch.Tensor, **settings: Any) -> Metric:
    return heldout_metrics(score_sequences(model, sequences, **settings))["loss"]


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    return GPT2LMHeadModel(config)


@pytest.fixture
def sequences() -> torch.Tensor:
    return torch.randint(0, 40, (7, 12), generator=torch.Generator().manual_seed(1))


def sequence_loss(model: GPT2LMHeadModel, sequence: list[int]) -> float:
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([sequence])).logits[0].double()
    total = 0.0
    for place in range(1, len(sequence)):
        scores = logits[place - 1].tolist()
        top = max(scores)
        log_sum = top + math.log(sum(math.exp(score - top) for score in scores))
        total += log_sum - scores[sequence[place]]
    return total / (len(sequence) - 1)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_loss_is_the_mean_over_blocks(
    model: GPT2LMHeadModel, sequences: torch.Tensor, batch_size: int
) -> None:
    losses = [sequence_loss(model, sequence) for sequence in sequences.tolist()]
    mean = sum(losses) / 7
    spread = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / 6)
    metric = heldout_loss(model, sequences, batch_size=batch_size)
    assert metric.n == 7
    assert metric.value == pytest.approx(mean, abs=1e-5)
    assert metric.stderr == pytest.approx(spread / math.sqrt(7), abs=1e-5)


def test_same_call_same_bits_and_small_integers_are_welcome(
    model: GPT2LMHeadModel, sequences: torch.Tensor
) -> None:
    first = heldout_loss(model, sequences, batch_size=4)
    assert heldout_loss(model, sequences, batch_size=4) == first
    assert heldout_loss(model, sequences.to(torch.int32), batch_size=4) == first


def test_dropout_is_off_and_the_mode_is_given_back(
    model: GPT2LMHeadModel, sequences: torch.Tensor
) -> None:
    model.eval()
    calm = heldout_loss(model, sequences, batch_size=2)
    model.train()
    assert heldout_loss(model, sequences, batch_size=2) == calm
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_knows_nothing_loses_log_of_its_vocabulary(sequences: torch.Tensor) -> None:
    blank = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    )
    torch.nn.init.zeros_(blank.lm_head.weight)
    metric = heldout_loss(blank, sequences, batch_size=2)
    assert metric.value == pytest.approx(math.log(40))
    assert metric.stderr == pytest.approx(0, abs=1e-6)


def test_one_sequence_has_no_standard_error(
    model: GPT2LMHeadModel, sequences: torch.Tensor
) -> None:
    assert heldout_loss(model, sequences[:1], batch_size=2).stderr is None


def test_what_cannot_be_measured_is_refused(
    model: GPT2LMHeadModel, sequences: torch.Tensor
) -> None:
    with pytest.raises(UserError, match="no full block"):
        heldout_loss(model, sequences[:0], batch_size=2)
    with pytest.raises(UserError, match="batch_size is 0"):
        heldout_loss(model, sequences, batch_size=0)
    for wrong in (sequences[0], sequences.float(), sequences[:, :1]):
        with pytest.raises(ValueError, match="must be integer"):
            heldout_loss(model, wrong, batch_size=2)
