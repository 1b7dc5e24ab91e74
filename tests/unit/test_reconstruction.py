"""Blocks made smaller in closed form: which units stay, and what the fits make up for."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from iskd.models import NarrowSizes, family_of
from iskd.models.activations import BlockCall, block_calls, first_tensor
from iskd.models.reconstruction import BlockFit, Sums, guarded_ridge
from iskd.models.substitution import block_sizes, settle_blocks
from iskd.models.units import block_units, strongest
from tests.unit.conftest import FAMILIES, SHARE, VOCABULARY, MakeModel


def calls_of(model: PreTrainedModel, index: int, count: int = 12) -> list[BlockCall]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, VOCABULARY, (count, 16), generator=generator)
    return [block_calls(model.eval(), [index], part)[index] for part in ids.split(4)]


def error(block: torch.nn.Module, calls: list[BlockCall]) -> float:
    """The mean squared error to the goal, each row by its goal's size, as the fits weigh it."""
    with torch.no_grad():
        total = 0.0
        for call in calls:
            given = first_tensor(block(call.hidden, *call.args, **call.kwargs))
            size = call.output.square().mean(-1, keepdim=True)
            total += float(((given - call.output).square() / size).mean())
    return total / len(calls)


def fit_of(model: PreTrainedModel, index: int, calls: list[BlockCall]) -> BlockFit:
    block = family_of(model.config).blocks(model)[index]
    return BlockFit(block, block_sizes(model.config, index), index, model.config, calls)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_as_large_as_before_is_the_block(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    calls = calls_of(model, 1)
    same = fit_of(model, 1, calls).smaller(block_sizes(model.config, 1))
    assert error(same, calls) < 1e-9


@pytest.mark.parametrize("part", ["heads", "attention", "neurons", "mlp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fit_comes_nearer_to_the_teacher_than_the_units_alone(
    family: str, part: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(family)
    now, share = block_sizes(model.config, 1), SHARE.get(family, 1)
    sizes = {
        "heads": NarrowSizes(now.heads - share, now.mlp),
        "attention": NarrowSizes(0, now.mlp),
        "neurons": NarrowSizes(now.heads, now.mlp // 2),
        "mlp": NarrowSizes(now.heads, 0),
    }[part]
    calls = calls_of(model, 1, 40)
    fit = fit_of(model, 1, calls)
    refitted = fit.smaller(sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "iskd.models.reconstruction.guarded_ridge", lambda seen, _: torch.zeros_like(seen.cross)
        )
        alone = fit.smaller(sizes)
    assert error(refitted, calls) < 0.97 * error(alone, calls)


@pytest.mark.parametrize("family", FAMILIES)
def test_widths_share_their_sums_and_lose_nothing_by_it(family: str, tiny_model: MakeModel) -> None:
    """A narrower MLP from shared sums is the one that a fit of its own gives."""
    model = tiny_model(family)
    now = block_sizes(model.config, 1)
    calls = calls_of(model, 1, 40)
    fit = fit_of(model, 1, calls)
    fit.smaller(NarrowSizes(now.heads, now.mlp // 2))
    shared = fit.smaller(NarrowSizes(now.heads, now.mlp // 4))
    own = fit_of(model, 1, calls).smaller(NarrowSizes(now.heads, now.mlp // 4))
    for name, value in own.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)


def test_silent_units_go_first_however_large_their_weights(tiny_model: MakeModel) -> None:
    model = tiny_model("llama")
    block: Any = family_of(model.config).blocks(model)[1]
    now = block_sizes(model.config, 1)
    with torch.no_grad():
        # Neuron 0 never fires and is the strongest by weight.
        block.mlp.gate_proj.weight[0] = 0
        block.mlp.down_proj.weight[:, 0] *= 100
    by_weight = strongest(block_units(block, 1, model.config), NarrowSizes(now.heads, 1), 1)
    assert by_weight["neuron"] == [0]
    calls = calls_of(model, 1)
    kept = fit_of(model, 1, calls)._kept(NarrowSizes(now.heads, now.mlp - 1))
    assert 0 not in kept["neuron"]
    smaller = fit_of(model, 1, calls).smaller(NarrowSizes(now.heads, now.mlp - 1))
    assert error(smaller, calls) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_shrink_step_by_step_and_settle_into_a_model(
    family: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(family).eval()
    now, share = block_sizes(model.config, 2), SHARE.get(family, 1)
    ids = torch.randint(1, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    blocks = family_of(model.config).blocks(model)
    for sizes in (
        NarrowSizes(now.heads, now.mlp // 2),
        NarrowSizes(now.heads - share, now.mlp // 2),
        NarrowSizes(0, now.mlp // 4),
        NarrowSizes(0, 0),
    ):
        calls = calls_of(model, 2)
        current = block_sizes(model.config, 2)
        block = BlockFit(blocks[2], current, 2, model.config, calls).smaller(sizes)
        blocks[2] = block
        settled, changed = settle_blocks(model, {2: sizes})
        with torch.no_grad():
            assert torch.equal(settled(ids).logits, model(ids).logits)
        assert block_sizes(settled.config, 2) == sizes
        assert changed[2] is family_of(settled.config).blocks(settled)[2]
        model, blocks = settled, family_of(settled.config).blocks(settled)


def test_a_ridge_that_only_learns_noise_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    seen, held_out = (
        Sums.of(torch.randn(40, 30, generator=generator), torch.randn(40, 5, generator=generator))
        for _ in range(2)
    )
    assert guarded_ridge(seen, held_out).abs().max() == 0


def test_a_ridge_finds_what_is_there() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(6, 4, generator=generator)
    parts = []
    for rows in (300, 100):
        features = torch.randn(rows, 6, generator=generator)
        parts.append(Sums.of(features, features @ truth))
    torch.testing.assert_close(guarded_ridge(*parts), truth, rtol=0.01, atol=0.01)
