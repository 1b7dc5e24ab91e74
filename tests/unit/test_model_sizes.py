"""Parameter counts: the paper's own shapes, to the last parameter."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig, PhiConfig, PreTrainedConfig

from iskd.errors import UserError
from iskd.models import (
    CompactSizes,
    NarrowSizes,
    compact_config,
    family_of,
    parameter_count,
    resolve_sizes,
)
from iskd.models.planning import matched_parameters, plan_substitutions, requested_sizes
from iskd.settings import SizeRequest


class Published(NamedTuple):
    config: PreTrainedConfig
    sizes: dict[str, Any]
    order: list[int]
    teacher: int
    block: tuple[int, int]
    first: int
    headline: tuple[int, int]
    reduction: float
    last: int


PUBLISHED = {
    "gpt2": Published(
        GPT2Config(),
        {
            "width": 128,
            "heads": 2,
            "blocks": 2,
            "mlp": 512,
            "activation": "relu",
        },
        [5, 7, 3, 9, 1, 11, 2, 10, 4, 8, 6, 0],
        124_439_808,
        (7_087_872, 725_376),
        118_077_312,
        (6, 86_264_832),
        0.306775,
        48_089_856,
    ),
    "phi": Published(
        PhiConfig(),  # the library's defaults are Phi-1's shape
        {
            "width": 512,
            "heads": 1,
            "blocks": 4,
            "mlp": 2048,
            "activation": "relu",
        },
        [9, 1, 19, 15, 14, 7, 17, 8, 10, 11, 13, 20, 0, 4, 12, 18, 6, 21, 5, 2, 23, 3, 16, 22],
        1_418_270_720,
        (50_354_176, 14_706_176),
        1_382_622_720,
        (12, 990_494_720),
        0.301618,
        562_718_720,
    ),
}


# What a study's config asks for when it names nothing.
PAPER = SizeRequest("paper")


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> Published:
    found: Published = PUBLISHED[request.param]
    return found


def test_every_step_has_the_published_count(published: Published) -> None:
    before, after = published.block
    order = published.order
    assert sorted(order) == list(range(published.config.num_hidden_layers))
    wanted = [published.teacher - k * (before - after) for k in range(len(order) + 1)]
    step, at_headline = published.headline
    assert (wanted[1], wanted[step], wanted[-1]) == (published.first, at_headline, published.last)
    assert parameter_count(published.config) == wanted[0]
    found = [
        parameter_count(compact_config(published.config, blocks=order[:k], recipe="paper"))
        for k in range(1, len(order) + 1)
    ]
    assert found == wanted[1:]


def test_the_plan_gives_the_published_counts(published: Published) -> None:
    steps = published.headline[0]
    plan = plan_substitutions(published.config, published.order, steps, PAPER)
    left = [step["parameters"] for step in plan["steps"]]
    assert plan["teacher_parameters"] == published.teacher
    assert (left[0], left[-1]) == (published.first, published.headline[1])
    assert plan["steps"][-1]["reduction"] == pytest.approx(published.reduction, abs=5e-7)
    assert [entry["step"] for entry in plan["steps"]] == list(range(1, len(left) + 1))
    assert [entry["block"] for entry in plan["steps"]] == published.order[:steps]
    before, after = published.block
    drops = {a - b for a, b in zip([published.teacher, *left], left, strict=False)}
    assert drops == {before - after}
    assert {key: plan["sizes"][key] for key in published.sizes} == published.sizes


def test_a_plan_without_an_order_leaves_the_blocks_open() -> None:
    published = PUBLISHED["gpt2"]
    plan = plan_substitutions(published.config, None, 2, PAPER)
    assert [entry["block"] for entry in plan["steps"]] == [None, None]
    assert plan["steps"][0]["parameters"] == published.first


def test_a_single_block_has_the_published_size(published: Published) -> None:
    index = published.order[0]
    config = compact_config(published.config, [index], published.sizes)
    with torch.device("meta"):
        blocks = [AutoModelForCausalLM.from_config(c) for c in (published.config, config)]
    family = family_of(config)
    sizes = tuple(sum(p.numel() for p in family.blocks(m)[index].parameters()) for m in blocks)
    assert sizes == published.block


def test_the_order_of_substitutions_does_not_change_the_config(published: Published) -> None:
    sizes = resolve_sizes(published.config)
    at_once = compact_config(published.config, [5, 2, 7], sizes)
    one_by_one: PreTrainedConfig = published.config
    for index in (7, 5, 2):
        one_by_one = compact_config(one_by_one, [index], sizes)
    assert at_once.to_dict() == one_by_one.to_dict()


def test_a_config_with_compact_blocks_survives_its_file(
    published: Published, tmp_path: Path
) -> None:
    sizes = resolve_sizes(published.config)
    config = compact_config(published.config, [3, 1], sizes)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert [entry["index"] for entry in written["compact_blocks"]] == [1, 3]
    read = type(config).from_pretrained(tmp_path)
    assert parameter_count(read) == parameter_count(config)
    assert read.to_dict() == config.to_dict()


def test_the_teachers_config_stays_as_it_is(published: Published) -> None:
    before = published.config.to_dict()
    compact_config(published.config, [0])
    assert published.config.to_dict() == before


@pytest.mark.parametrize("blocks", [[12], [-1], [3, 3]])
def test_blocks_out_of_range_or_twice_are_refused(blocks: list[int]) -> None:
    sizes = CompactSizes(width=8, heads=1, blocks=1, mlp=8, positions=8)
    with pytest.raises(UserError, match="block"):
        compact_config(GPT2Config(), blocks, sizes)


def test_an_unknown_architecture_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"'opt' is not supported.*gpt2, phi, llama"):
        family_of(OPTConfig())


@pytest.mark.parametrize("recipe", ["paper", "narrow"])
@pytest.mark.parametrize(
    "target", [{}, {"reduction": 0.1, "replaced": 2}, {"like": replace(PAPER, width=16)}]
)
def test_a_job_works_out_the_sizes_and_the_target_of_its_plan(
    recipe: Any, target: dict[str, Any]
) -> None:
    config = GPT2Config(n_embd=48, n_layer=3, n_head=4, vocab_size=61)
    request = replace(PAPER, recipe=recipe, **target)
    plan = plan_substitutions(config, [2, 0], 2, request)
    sizes = requested_sizes(config, request)
    assert isinstance(sizes, NarrowSizes if recipe == "narrow" else CompactSizes)
    assert asdict(sizes) == plan["sizes"]
    for step in plan["steps"]:
        replaced = [2, 0][: step["step"]]
        assert matched_parameters(config, request, replaced) == step["parameters"]
    assert matched_parameters(config, request, [None, None]) == plan["steps"][-1]["parameters"]


def test_a_size_request_is_read_back_from_a_rules_parameters() -> None:
    request = SizeRequest("narrow", like=SizeRequest("paper", reduction=0.3, replaced=4))
    assert SizeRequest.of(json.loads(json.dumps(asdict(request)))) == request


def test_a_baseline_aims_at_the_published_count() -> None:
    published = PUBLISHED["gpt2"]
    blocks = list(published.order[:6])
    assert matched_parameters(published.config, PAPER, blocks) == published.headline[1]
