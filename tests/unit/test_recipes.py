"""Recipes: what sizes a block gets, and that a target of the whole model is met closely."""

from dataclasses import asdict, replace
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, PhiConfig, PreTrainedConfig

from iskd.errors import UserError
from iskd.models import (
    ChangedBlocks,
    CompactSizes,
    NarrowSizes,
    compact_config,
    parameter_count,
    resolve_sizes,
)
from iskd.models.planning import requested_sizes
from iskd.models.recipes import block_parameters, head_grain
from iskd.settings import SizeRequest
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, MakeModel

CompactRecipe = Literal["paper", "bottleneck"]
BLOCKS = 3
# Inner heads in the paper's proportions.
HEADS = {family: 1 if family == "phi" else 2 for family in FAMILIES}


@pytest.fixture(scope="session")
def configs(tiny_model: MakeModel) -> dict[str, PreTrainedConfig]:
    return {family: tiny_model(family, width=64).config for family in FAMILIES}


def left_after(config: PreTrainedConfig, replaced: int, sizes: Any) -> int:
    return parameter_count(compact_config(config, range(replaced), sizes))


@settings(max_examples=30)
@given(
    family=st.sampled_from(FAMILIES),
    recipe=st.sampled_from(["paper", "bottleneck"]),
    replaced=st.integers(1, BLOCKS),
    share=st.floats(0.05, 0.9),
)
def test_a_compact_recipe_reaches_its_reduction_within_one_step_of_its_width(
    *,
    family: str,
    recipe: CompactRecipe,
    replaced: int,
    share: float,
    configs: dict[str, PreTrainedConfig],
) -> None:
    config = configs[family]
    whole, block = parameter_count(config), block_parameters(config, None)
    # A share of what the blocks hold, so that it can be reached.
    reduction = share * replaced * block / whole
    try:
        sizes = resolve_sizes(config, recipe, replaced=replaced, reduction=reduction)
    except UserError:
        # Only where the smallest block there is would be too large.
        grain = resolve_sizes(config, recipe).heads * head_grain(config)
        least = resolve_sizes(config, recipe, {"width": grain})
        assert 1 - left_after(config, replaced, least) / whole < reduction
        return
    assert isinstance(sizes, CompactSizes)
    assert 1 - left_after(config, replaced, sizes) / whole >= reduction - 1e-9
    grain = sizes.heads * head_grain(config)
    width = sizes.width + grain
    larger = replace(sizes, width=width, mlp=4 * width)
    assert 1 - left_after(config, replaced, larger) / whole < reduction + 1e-9
    assert (sizes.width % grain, sizes.mlp) == (0, 4 * sizes.width)


@settings(max_examples=30)
@given(
    family=st.sampled_from(FAMILIES),
    replaced=st.integers(1, BLOCKS),
    share=st.floats(0.0, 0.85),
    heads=st.one_of(st.none(), st.integers(1, 4)),
)
def test_a_narrow_recipe_reaches_its_reduction_within_one_neuron(
    *,
    family: str,
    replaced: int,
    share: float,
    heads: int | None,
    configs: dict[str, PreTrainedConfig],
) -> None:
    config = configs[family]
    whole, block = parameter_count(config), block_parameters(config, None)
    reduction = share * replaced * block / whole
    wanted = {"heads": heads and heads * SHARE.get(family, 1), "mlp": None}
    try:
        sizes = resolve_sizes(config, "narrow", wanted, replaced=replaced, reduction=reduction)
    except UserError:
        least = NarrowSizes(wanted["heads"] or SHARE.get(family, 1), 1)
        assert 1 - left_after(config, replaced, least) / whole < reduction
        return
    assert isinstance(sizes, NarrowSizes)
    if heads is not None:
        assert sizes.heads == wanted["heads"]
    assert 1 - left_after(config, replaced, sizes) / whole >= reduction - 1e-9
    whole_block = resolve_sizes(config, "narrow", reduction=0.0)
    assert isinstance(whole_block, NarrowSizes)
    if sizes.mlp < whole_block.mlp:
        wider = replace(sizes, mlp=sizes.mlp + 1)
        assert 1 - left_after(config, replaced, wider) / whole < reduction + 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_no_reduction_at_all_keeps_a_narrow_block_whole(
    family: str, configs: dict[str, PreTrainedConfig]
) -> None:
    config = configs[family]
    sizes = resolve_sizes(config, "narrow", reduction=0.0)
    assert block_parameters(config, sizes) == block_parameters(config, None)
    assert isinstance(sizes, NarrowSizes)
    assert sizes.heads == config.num_attention_heads


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_neurons_shrink_in_the_same_proportion(
    family: str, configs: dict[str, PreTrainedConfig]
) -> None:
    config = configs[family]
    most = resolve_sizes(config, "narrow", reduction=0.0)
    half = resolve_sizes(config, "narrow", parameters=block_parameters(config, None) // 2)
    assert isinstance(most, NarrowSizes)
    assert isinstance(half, NarrowSizes)
    groups = most.heads // SHARE.get(family, 1)
    assert abs(half.heads / most.heads - half.mlp / most.mlp) <= 1 / groups


@pytest.mark.parametrize(
    ("given_mlp", "heads"), [(1, "most"), (20, "most")], ids=["one neuron", "twenty"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_given_neurons_leave_room_for_as_many_heads_as_fit(
    family: str, given_mlp: int, heads: str, configs: dict[str, PreTrainedConfig]
) -> None:
    config = configs[family]
    budget = block_parameters(config, None) // 2
    sizes = resolve_sizes(config, "narrow", {"mlp": given_mlp}, parameters=budget)
    assert isinstance(sizes, NarrowSizes)
    assert sizes.mlp == given_mlp
    assert block_parameters(config, sizes) <= budget
    more = sizes.heads + SHARE.get(family, 1)
    if more <= config.num_attention_heads:
        assert block_parameters(config, NarrowSizes(more, given_mlp)) > budget


@pytest.mark.parametrize("recipe", ["paper", "bottleneck", "narrow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_reduction_out_of_reach_is_reported_in_one_line(
    family: str, recipe: Any, configs: dict[str, PreTrainedConfig]
) -> None:
    config = configs[family]
    share = block_parameters(config, None) / parameter_count(config)
    # More than the block holds; and as much as it holds but for a handful of parameters.
    for reduction, message in ((0.99, "which hold"), (share * 0.999, "the smallest block has")):
        with pytest.raises(UserError, match=message) as raised:
            compact_config(config, [1], recipe=recipe, reduction=reduction)
        assert "\n" not in str(raised.value)
        assert "replace more blocks (steps, order) or ask for less" in str(raised.value)


@pytest.mark.parametrize("recipe", ["bottleneck", "narrow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_is_no_larger_than_the_one_it_is_compared_with(
    family: str, recipe: Any, configs: dict[str, PreTrainedConfig]
) -> None:
    config = configs[family]
    paper = SizeRequest("paper", width=16 if family == "phi" else 32)
    request = SizeRequest(recipe, like=paper)
    budget = block_parameters(config, requested_sizes(config, paper))
    sizes = requested_sizes(config, request)
    assert block_parameters(config, sizes) <= budget
    larger: CompactSizes | NarrowSizes
    if isinstance(sizes, CompactSizes):
        width = sizes.width + sizes.heads * head_grain(config)
        larger = replace(sizes, width=width, mlp=4 * width)
    else:
        larger = replace(sizes, mlp=sizes.mlp + 1)
    assert block_parameters(config, larger) > budget
    # A reduction that is named goes before the comparison.
    named = requested_sizes(config, replace(request, reduction=0.05))
    assert named == resolve_sizes(config, recipe, reduction=0.05)


@pytest.mark.parametrize("recipe", ["paper", "bottleneck", "narrow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_further_step_counts_what_the_earlier_ones_saved(
    family: str, recipe: Any, configs: dict[str, PreTrainedConfig]
) -> None:
    """The reduction is the teacher's, also where the config at hand is smaller already."""
    teacher = configs[family]
    whole = parameter_count(teacher)
    first = compact_config(teacher, [0], recipe=recipe, reduction=0.1)

    def reached(config: PreTrainedConfig, blocks: list[int], wider: int) -> float:
        sizes = ChangedBlocks.of(compact_config(config, blocks, recipe="bottleneck", reduction=0.3))
        width = sizes.compact[1].width + wider
        larger = replace(sizes.compact[1], width=width, mlp=4 * width)
        return 1 - parameter_count(compact_config(config, blocks, larger)) / whole

    # The narrow block 0 may be replaced by another kind; a compact one stays.
    for blocks in ([1], [1, 2], *([[0, 1]] if recipe == "narrow" else [])):
        assert reached(first, blocks, 0) >= 0.3 - 1e-9
        assert reached(first, blocks, HEADS[family] * head_grain(teacher)) < 0.3


def test_the_papers_proportions_are_the_default() -> None:
    assert resolve_sizes(GPT2Config()) == CompactSizes(128, 2, 2, 512, 1024, "relu")
    assert resolve_sizes(PhiConfig()) == CompactSizes(512, 1, 4, 2048, 0, "relu")
    bare = resolve_sizes(GPT2Config(), "bottleneck")
    assert bare == CompactSizes(128, 2, 1, 512, 0, "gelu")
    narrow = resolve_sizes(GPT2Config(), "narrow")
    assert isinstance(narrow, NarrowSizes)
    # As large as the paper's block, to less than a neuron.
    paper, neuron = 725_376, 2 * 768 + 1
    assert paper - neuron < block_parameters(GPT2Config(), narrow) <= paper


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_take_gpt2s_proportions(
    family: str, configs: dict[str, PreTrainedConfig]
) -> None:
    config = configs[family]
    sizes = resolve_sizes(config)
    assert isinstance(sizes, CompactSizes)
    heads, layers, divisor = (1, 4, 4) if family == "phi" else (2, 2, 6)
    assert (sizes.heads, sizes.blocks, sizes.mlp) == (heads, layers, 4 * sizes.width)
    grain = heads * head_grain(config)
    assert abs(sizes.width - config.hidden_size / divisor) <= max(grain / 2, grain - 64 / divisor)
    assert sizes.positions == (POSITIONS if family == "gpt2" else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_given_is_kept(family: str, configs: dict[str, PreTrainedConfig]) -> None:
    config = configs[family]
    grain = 2 * head_grain(config)
    shape = {"width": grain, "heads": 2, "blocks": 3, "mlp": 7, "activation": "silu"}
    sizes = resolve_sizes(config, "bottleneck", {**shape, "published": None})
    assert asdict(sizes) == {**shape, "positions": 0, "published": False}
    with pytest.raises(UserError, match=f"a multiple of {grain}"):
        resolve_sizes(config, "bottleneck", {**shape, "width": grain + 1})
    share = SHARE.get(family, 1)
    assert resolve_sizes(config, "narrow", {"heads": share, "mlp": 3}) == NarrowSizes(share, 3)
    for wrong in ({"heads": 9}, {"heads": 0}, {"mlp": 0}, {"mlp": 10**6}):
        with pytest.raises(UserError, match="narrow"):
            resolve_sizes(config, "narrow", {"heads": share, "mlp": 3, **wrong})
        with pytest.raises(UserError, match="narrow"):
            resolve_sizes(config, "narrow", wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_a_whole_number_of_rotary_pairs(
    family: str, configs: dict[str, PreTrainedConfig]
) -> None:
    config = configs[family]
    wanted = {"gpt2": 1, "phi": 4, "gpt_neox": 8}.get(family, 2)
    assert head_grain(config) == wanted


def test_a_size_that_a_recipe_does_not_have_is_refused(
    configs: dict[str, PreTrainedConfig],
) -> None:
    with pytest.raises(UserError, match=r"no 'widht'; it has width, heads"):
        resolve_sizes(configs["gpt2"], "paper", {"widht": 8})
    with pytest.raises(UserError, match="recipe narrow has no 'width'"):
        resolve_sizes(configs["gpt2"], "narrow", {"width": 8, "heads": 2, "mlp": 4})
