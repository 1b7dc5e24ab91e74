"""How a new block starts: as a skip, from the teacher's activations, from the teacher's units."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from iskd.errors import UserError
from iskd.models import CompactSizes, NarrowSizes, family_of, replace_block
from iskd.models.activations import BlockCall, all_calls, block_calls, first_tensor
from iskd.models.modeling.iskd_blocks import CompactBlock
from iskd.models.units import unit_counts
from iskd.settings import Initialisation
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, VOCABULARY, MakeModel

SIZES = CompactSizes(width=8, heads=1, blocks=1, mlp=16, positions=POSITIONS)
IDS = torch.randint(1, VOCABULARY, (24, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@torch.no_grad()
def call(block: nn.Module, given: BlockCall) -> torch.Tensor:
    return first_tensor(block(given.hidden, *given.args, **given.kwargs))


def calibration(model: Any, index: int) -> list[BlockCall]:
    return [calls[index] for calls in all_calls(model, [index], IDS, batch_size=10)]


def error(block: nn.Module, calls: Sequence[BlockCall]) -> float:
    """Give the squared error of a block's output, as a share of what a plain skip has."""
    missed = sum((call(block, c) - c.output).square().sum().item() for c in calls)
    return missed / sum((c.hidden - c.output).square().sum().item() for c in calls)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_block_that_is_called_as_it_was_gives_what_it_gave(
    family: str, kernel: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(family, compact={1: SIZES})
    model.set_attn_implementation(kernel)
    calls = block_calls(model, [2, 0, 1], IDS[:2])
    assert sorted(calls) == [0, 1, 2]
    for index, block in enumerate(family_of(model.config).blocks(model)):
        assert torch.equal(call(block, calls[index]), calls[index].output)
    assert torch.equal(calls[0].output, calls[1].hidden)
    assert torch.equal(calls[1].output, calls[2].hidden)
    # No hook is left.
    assert set(block_calls(model, [1], IDS[:2])) == {1}
    assert model(IDS[:2]).logits.shape == (2, 16, VOCABULARY)


def test_calls_come_in_batches_and_without_dropout(tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2", dropout=0.5).train()
    batches = [c[1] for c in all_calls(model, [1], IDS, batch_size=10)]
    assert [len(c.hidden) for c in batches] == [10, 10, 4]
    assert model.training
    whole = block_calls(model.eval(), [1], IDS)[1]
    torch.testing.assert_close(torch.cat([c.output for c in batches]), whole.output)


def test_least_squares_fits_better_than_anything_else(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    calls = calibration(model, 1)
    errors = {
        kind: error(replace_block(model, 1, SIZES, kind, 1, calls=calls)[1], calls)
        for kind in ("paper", "zero_up", "pca", "least_squares")
    }
    assert errors["zero_up"] == pytest.approx(1.0)
    assert errors["least_squares"] < 0.98
    assert errors["least_squares"] < min(errors["pca"], errors["paper"])
    # The one factor of the up-projection that fits best cannot do worse than none.
    assert errors["pca"] < 1.0 + 1e-6


def test_least_squares_leaves_no_linear_rest(family: str, tiny_model: MakeModel) -> None:
    """What a least-squares fit leaves is, up to the ridge, unrelated to what it could use."""
    model = tiny_model(family)
    calls = calibration(model, 1)
    _, block = replace_block(model, 1, SIZES, "least_squares", 1, calls=calls)
    rest = torch.cat([(c.output - call(block, c)).flatten(0, 1) for c in calls]).detach()
    assert isinstance(block, CompactBlock)
    with torch.no_grad():
        features = torch.cat(
            [block.features(c.hidden, *c.args, **c.kwargs).flatten(0, 1) for c in calls]
        )
    features = features - features.mean(0)
    torch.testing.assert_close(rest.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    related = features.T @ rest / (features.norm(dim=0)[:, None] * rest.norm(dim=0))
    assert related.abs().max() < 0.02


def test_pca_reads_the_largest_principal_components(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    calls = calibration(model, 1)
    _, block = replace_block(model, 1, SIZES, "pca", 1, calls=calls)
    inputs = torch.cat([c.hidden.flatten(0, 1) for c in calls]).double()
    centred = inputs - inputs.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    top = directions[:, -SIZES.width :]
    down = block.get_parameter("down.weight").detach().double()
    torch.testing.assert_close(down @ top @ top.T, down, atol=1e-4, rtol=1e-4)
    assert torch.linalg.matrix_rank(down) == SIZES.width
    # Of unit variance, and so far from zero that a ReLU lets almost all of it through.
    read = inputs @ down.T + block.get_parameter("down.bias").detach().double()
    torch.testing.assert_close(read.std(0), torch.ones(8).double(), atol=1e-3, rtol=0)
    assert (read > 0).double().mean() > 0.95
    written = torch.cat([(c.output - c.hidden).flatten(0, 1) for c in calls]).double()
    written = written - written.mean(0)
    _, directions = torch.linalg.eigh(written.T @ written)
    up = block.get_parameter("up.weight").detach().double()
    top = directions[:, -SIZES.width :]
    torch.testing.assert_close(top @ top.T @ up, up, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_a_narrow_block_with_all_units_is_the_teachers(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    counts = unit_counts(model.config)
    whole = NarrowSizes(model.config.num_attention_heads, counts["neuron"])
    new, _ = replace_block(model, 1, whole, "teacher", seed=1)
    assert torch.equal(new(IDS).logits, model(IDS).logits)
    drawn, _ = replace_block(model, 1, whole, "paper", seed=1)
    assert not torch.allclose(drawn(IDS).logits, model(IDS).logits, atol=0.1)


def test_a_narrow_block_starts_closer_from_the_teacher_and_closest_by_least_squares(
    family: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(family)
    calls = calibration(model, 1)
    sizes = NarrowSizes(3 * SHARE.get(family, 1), 60)
    errors = {
        kind: error(replace_block(model, 1, sizes, kind, 1, calls=calls)[1], calls)
        for kind in ("paper", "teacher", "least_squares")
    }
    assert errors["teacher"] < errors["paper"]
    assert errors["least_squares"] < 0.95 * errors["teacher"]
    assert errors["least_squares"] < 1.0


def test_a_refit_never_makes_it_worse_where_the_missing_part_has_a_mean(
    tiny_model: MakeModel,
) -> None:
    """Llama's last projection has no bias: a fit that leaves the means to one would be off."""
    model = tiny_model("llama")
    block = family_of(model.config).blocks(model)[1]
    with torch.no_grad():
        # A value that is nearly the same for every token gives each head's output a large mean.
        block.get_submodule("input_layernorm").get_parameter("weight").mul_(0.1)
        model.get_input_embeddings().weight.add_(1.0)
    calls = calibration(model, 1)
    sizes = NarrowSizes(SHARE["llama"], 3)
    teacher, fitted = (
        error(replace_block(model, 1, sizes, kind, 1, calls=calls)[1], calls)
        for kind in ("teacher", "least_squares")
    )
    assert fitted <= teacher


@pytest.mark.parametrize("kind", ["paper", "zero_up", "pca", "least_squares"])
def test_the_seed_decides_on_what_is_drawn(family: str, kind: Any, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    calls = calibration(model, 1)
    states = [
        replace_block(model, 1, SIZES, kind, seed, calls=calls)[1].state_dict()
        for seed in (5, 5, 6)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    inner = [n for n, v in states[0].items() if n.startswith("blocks.") and v.ndim == 2]
    assert inner
    assert not any(torch.equal(states[0][name], states[2][name]) for name in inner)


@pytest.mark.parametrize("kind", ["paper", "zero_up", "pca", "least_squares"])
def test_the_block_is_drawn_alike_whatever_is_fitted(
    family: str, kind: Any, tiny_model: MakeModel
) -> None:
    """Arms that differ in their initialisation differ in their projections and nothing else."""
    model = tiny_model(family)
    calls = calibration(model, 1)
    plain = replace_block(model, 1, SIZES, "paper", 5)[1].state_dict()
    other = replace_block(model, 1, SIZES, kind, 5, calls=calls)[1].state_dict()
    for name, value in plain.items():
        if name.split(".")[0] not in ("up", "down"):
            assert torch.equal(value, other[name]), name


def test_a_start_that_the_recipe_cannot_have_is_refused(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    with pytest.raises(UserError, match="needs recipe narrow"):
        replace_block(model, 1, SIZES, "teacher", seed=1)
    with pytest.raises(UserError, match="recipe narrow has none"):
        replace_block(model, 1, NarrowSizes(2, 3), "pca", seed=1)


@pytest.mark.parametrize("recipe", ["narrow", "paper"])
def test_dropout_has_no_part_in_a_fit(recipe: str, tiny_model: MakeModel) -> None:
    states = []
    for dropout in (0.0, 0.5):
        model = tiny_model("gpt2", dropout=dropout)
        calls = [block_calls(model, [1], torch.arange(1, 41).reshape(2, 20))[1]]
        sizes: CompactSizes | NarrowSizes = (
            NarrowSizes(2, 60) if recipe == "narrow" else CompactSizes(16, 2, 1, 32, POSITIONS)
        )
        _, block = replace_block(model, 1, sizes, "least_squares", seed=1, calls=calls)
        states.append(block.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("kind", ["pca", "least_squares"])
def test_a_fitted_block_is_no_wider_than_the_model(
    kind: Initialisation, tiny_model: MakeModel
) -> None:
    model = tiny_model("gpt2")
    wide = CompactSizes(2 * model.config.hidden_size, 2, 1, 32, POSITIONS)
    calls = [block_calls(model, [1], torch.arange(1, 41).reshape(2, 20))[1]]
    with pytest.raises(UserError, match="lower its width"):
        replace_block(model, 1, wide, kind, seed=1, calls=calls)
