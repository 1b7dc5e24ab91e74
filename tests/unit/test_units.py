"""Heads and neurons: which weights belong to one, how strong it is, and taking some along."""

import pytest
import torch

from iskd.models import NarrowSizes, family_of, replace_block
from iskd.models.recipes import block_parameters
from iskd.models.units import block_units, kept_state, strongest, unit_counts
from tests.unit.conftest import FAMILIES, SHARE, MakeModel

IDS = torch.arange(1, 13)[None]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_the_units_of_a_block_are_what_a_narrow_block_loses(
    family: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(family)
    config, share = model.config, SHARE.get(family, 1)
    units = block_units(family_of(config).blocks(model)[1], 1, config)
    counts = unit_counts(config)
    assert counts["head"] == config.num_attention_heads // share
    for kind, count in counts.items():
        assert [u.index for u in units if u.kind == kind] == list(range(count))
    assert {u.block for u in units} == {1}
    whole = NarrowSizes(config.num_attention_heads, counts["neuron"])
    full = block_parameters(config, whole)
    fewer_heads = NarrowSizes(whole.heads - share, whole.mlp)
    fewer_neurons = NarrowSizes(whole.heads, whole.mlp - 1)
    weights = {u.kind: u.weights for u in units}
    assert weights == {
        "head": full - block_parameters(config, fewer_heads),
        "neuron": full - block_parameters(config, fewer_neurons),
    }


def test_strength_is_the_mean_size_of_the_units_own_weights(
    family: str, tiny_model: MakeModel
) -> None:
    """Scaling what belongs to one unit moves the strength of this one alone."""
    model = tiny_model(family)
    config = model.config
    block = family_of(config).blocks(model)[0]
    before = block_units(block, 0, config)
    counts = unit_counts(config)
    kept = {"head": [i for i in range(counts["head"]) if i != 2], "neuron": [0, 1, 5]}
    without = kept_state(block, kept, config)  # type: ignore[arg-type]
    # L1 norms add up: what the others hold and what is missing give the whole.
    total = sum(value.double().abs().sum() for value in block.state_dict().values())
    rest = sum(value.double().abs().sum() for value in without.values())
    gone = [u for u in before if u.index not in kept[u.kind]]
    missing = sum(u.strength * u.weights for u in gone)
    assert float(total - rest) == pytest.approx(missing, rel=1e-6)


def test_the_strongest_units_stay_in_their_order(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    config, share = model.config, SHARE.get(family, 1)
    units = block_units(family_of(config).blocks(model)[1], 1, config)
    kept = strongest(units, NarrowSizes(2 * share, 9), share)
    for kind, count in (("head", 2), ("neuron", 9)):
        found = kept[kind]  # type: ignore[index]
        assert found == sorted(found)
        assert len(found) == count
        own = {u.index: u.strength for u in units if u.kind == kind}
        weakest = min(own[i] for i in found)
        assert all(strength <= weakest for i, strength in own.items() if i not in found)


@torch.no_grad()
def test_units_that_write_nothing_are_not_missed(family: str, tiny_model: MakeModel) -> None:
    """Silence all but two heads and nine neurons: the narrow block with those is the same block."""
    model = tiny_model(family)
    config, share = model.config, SHARE.get(family, 1)
    found = family_of(config)
    block = found.blocks(model)[1]
    counts = unit_counts(config)
    kept = {"head": [1, 3], "neuron": list(range(4, 13))}
    cuts = {"head": found.adapter.head_cuts, "neuron": found.adapter.neuron_cuts}
    for kind, count in counts.items():
        # The last cut of each kind is of the module that writes into the stream.
        cut = cuts[kind][-1]
        view = block.get_parameter(cut.parameter).movedim(cut.dim, 0)
        view = view.unflatten(0, (count, -1))
        for index in set(range(count)) - set(kept[kind]):
            view[index] = 0.0
    wanted = model(IDS).logits
    sizes = NarrowSizes(2 * share, 9)
    narrow, new = replace_block(model, 1, sizes, "paper", seed=1)
    assert not torch.allclose(narrow(IDS).logits, wanted, atol=0.1)
    new.load_state_dict(kept_state(block, kept, config))  # type: ignore[arg-type]
    torch.testing.assert_close(narrow(IDS).logits, wanted, atol=1e-4, rtol=1e-5)
