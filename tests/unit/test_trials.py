"""Trials of replacements in a model: the losses of whole models, without making them."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from iskd.models import ChangedBlocks, CompactSizes, NarrowSizes, family_of, replace_block
from iskd.models.activations import block_calls
from iskd.models.substitution import trial_block
from iskd.training.objectives import next_token_loss
from iskd.training.trials import BlockWalk, ReturningWalk
from tests.unit.conftest import POSITIONS, VOCABULARY, MakeModel

FAMILIES = ["gpt2", "phi", "llama", "mistral", "qwen2", "qwen3", "gpt_neox"]
SIZES = CompactSizes(width=16, heads=2, blocks=2, mlp=24, positions=POSITIONS)


def sequences(count: int = 5, length: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(1, VOCABULARY, (count, length), generator=generator, dtype=torch.int32)


def loss_of(model: PreTrainedModel, given: torch.Tensor) -> float:
    """The mean loss of a whole model, in batches of 2."""
    with torch.no_grad():
        parts = [
            next_token_loss(model.eval(), {"input_ids": part.long()}).item() * len(part)
            for part in given.split(2)
        ]
    total = 0.0
    for part in parts:
        total += part
    return total / len(given)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_gives_the_loss_of_the_whole_model_to_the_bit(
    family: str, tiny_model: MakeModel
) -> None:
    model, _ = replace_block(tiny_model(family, blocks=4), 2, SIZES, "paper", 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    walk = BlockWalk(model, sequences(), 2)
    for index in range(4):
        assert walk.index == index
        if index not in ChangedBlocks.of(model.config).compact:
            other, block = replace_block(model, index, SIZES, "paper", 3)
            assert walk.loss(block) == loss_of(other, sequences())
        assert walk.loss(family_of(model.config).blocks(model)[index]) == loss_of(
            model, sequences()
        )
        walk.advance()
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any("forward" in block.__dict__ for block in family_of(model.config).blocks(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_calls_on_the_way_are_those_of_the_model(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family, blocks=3)
    walk = BlockWalk(model, sequences(), 2)
    for index in range(3):
        for part, call in zip(sequences().split(2), walk.calls(), strict=True):
            real = block_calls(model, [index], part.long())[index]
            assert torch.equal(call.hidden, real.hidden)
            assert torch.equal(call.output, real.output)
            assert call.kwargs.keys() == real.kwargs.keys()
        walk.advance()


@pytest.mark.parametrize("initialisation", ["teacher", "least_squares"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_on_trial_is_the_one_that_would_be_taken(
    family: str, initialisation: Any, tiny_model: MakeModel
) -> None:
    model = tiny_model(family, blocks=3)
    heads = family_of(model.config).adapter.sharing_heads(model.config)
    sizes = NarrowSizes(heads=heads, mlp=20)
    calls = [block_calls(model, [1], part.long())[1] for part in sequences(8).split(4)]
    _, real = replace_block(model, 1, sizes, initialisation, 5, calls=calls)
    trial = trial_block(model, 1, sizes, initialisation, 5, calls=calls)
    mine, others = trial.state_dict(), real.state_dict()
    assert mine.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in mine.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_block_on_trial_is_drawn_as_the_library_does(
    family: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(family, blocks=3)
    _, real = replace_block(model, 1, SIZES, "paper", 5)
    trial, again = (trial_block(model, 1, SIZES, "paper", 5) for _ in range(2))
    for name, value in real.state_dict().items():
        drawn = trial.state_dict()[name]
        assert torch.equal(drawn, again.state_dict()[name])
        assert drawn.std().item() == pytest.approx(value.std().item(), rel=0.35, abs=1e-6)


def test_nothing_before_the_block_is_run(tiny_model: MakeModel) -> None:
    model = tiny_model("llama", blocks=4)
    walk = BlockWalk(model, sequences(), 2)
    blocks = family_of(model.config).blocks(model)
    for _ in range(2):
        walk.advance()
    ran: list[int] = []
    for index, block in enumerate(blocks):
        attention = block.get_submodule("self_attn")
        attention.register_forward_hook(lambda *_, index=index: ran.append(index))
    walk.loss(blocks[2])
    assert set(ran) == {2, 3}
    assert len(ran) == 2 * 3


def test_weights_cast_once_change_no_bit_and_nothing_else_is_rounded(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iskd.training.objectives.LARGE_VOCABULARY", 1)  # losses in chunks
    model = tiny_model("llama", blocks=4)
    blocks = family_of(model.config).blocks(model)
    each, once = (BlockWalk(model, sequences(), 2, half=True) for _ in range(2))
    alone = [each.loss(block) for block in blocks]
    wide = torch.eye(3) + 2**-12
    with once.weights_cast_once():
        for block, loss in zip(blocks, alone, strict=True):
            assert once.loss(block) == loss
            with once.precisely():
                assert torch.equal(wide @ torch.eye(3), wide)
    assert len(set(alone)) == 4


@pytest.mark.parametrize("most_kept", [2**29, 1])
def test_a_walk_that_returns_is_where_a_new_one_would_be(
    most_kept: int, tiny_model: MakeModel
) -> None:
    model = tiny_model("llama", blocks=6)
    blocks = family_of(model.config).blocks(model)
    walk = ReturningWalk(model, sequences(), 2, most_kept=most_kept)

    def same(index: int) -> None:
        fresh = BlockWalk(model, sequences(), 2)
        while fresh.index < index:
            fresh.advance()
        walk.go_to(index)
        assert walk.index == index
        for mine, other in zip(walk.calls(), fresh.calls(), strict=True):
            assert torch.equal(mine.hidden, other.hidden)
            assert torch.equal(mine.output, other.output)

    for index in (4, 1, 5, 0, 3, 3):
        same(index)
    for changed in (3, 5, 0):
        blocks[changed] = trial_block(model, changed, SIZES, "paper", 1).eval()
        walk.swap(changed, blocks[changed])
        for index in (changed, 5, 1):
            same(index)
