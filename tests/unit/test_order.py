"""Which blocks compete on how much text, and that the one that wins is the cheapest."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from iskd.models import NarrowSizes, replace_block
from iskd.training import order
from iskd.training.objectives import next_token_loss
from tests.unit.conftest import VOCABULARY, MakeModel
from tests.unit.test_steps import STEP


@given(validation=st.integers(1, 300), candidates=st.integers(1, 96))
def test_the_last_round_sees_all_text_and_no_round_grows(validation: int, candidates: int) -> None:
    plan = order.rounds(validation, candidates)
    seen, counts = [text for text, _ in plan], [count for _, count in plan]
    assert counts[0] == candidates
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= min(2, candidates)
    assert seen == sorted(set(seen))
    assert seen[-1] == validation


def test_a_measurement_costs_a_quarter_of_trying_all_on_all() -> None:
    plan = order.rounds(32, 30)
    assert plan == [(4, 30), (8, 10), (16, 4), (32, 2)]
    before = [0, *(text for text, _ in plan)]
    work = sum((end - start) * count for start, (end, count) in zip(before, plan, strict=False))
    assert work < 0.25 * 32 * 30


def exact_loss(model: PreTrainedModel, sequences: torch.Tensor) -> float:
    with torch.no_grad():
        return next_token_loss(model.eval(), {"input_ids": sequences.long()}).item()


def test_the_losses_are_those_of_whole_models_over_the_text_a_block_saw(
    tiny_model: MakeModel,
) -> None:
    model = tiny_model("llama", blocks=5)
    text = torch.randint(1, VOCABULARY, (16, 8), generator=torch.Generator().manual_seed(3))
    sizes = NarrowSizes(heads=2, mlp=8)
    settings = replace(STEP, start=replace(STEP.start, initialisation="teacher"))
    chosen, facts = order.cheapest_block(
        model, lambda: model, sizes, text, settings, validation=text, seed=1
    )
    assert sorted(facts["measured_on"].values()) == [4, 4, 4, 16, 16]
    for index, loss in facts["loss_if_replaced"].items():
        smaller, _ = replace_block(model, int(index), sizes, "teacher", 1)
        expected = exact_loss(smaller, text[: facts["measured_on"][index]])
        assert loss == pytest.approx(expected, rel=1e-6)
    last = {i: facts["loss_if_replaced"][i] for i, n in facts["measured_on"].items() if n == 16}
    assert str(chosen) == min(last, key=lambda index: last[index])
