"""The published code's defect, on purpose: the checks that hold for all else must catch it."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from iskd.errors import UserError
from iskd.evaluation.efficiency import Load, measure, summarise
from iskd.models import CompactSizes, compact_config, replace_block
from tests.unit.conftest import FAMILIES, MakeModel
from tests.unit.test_model_behaviour import (
    KERNELS,
    TWO_LAYERS,
    check_causality,
    check_inner_queries_and_keys_are_trained,
    check_mask_of_ones,
    ids_of,
    logits_of,
)

PUBLISHED = replace(TWO_LAYERS, published=True)
FIXED = ["gpt2", "phi"]
MASKED = ["all ones", "left", "right"]


@pytest.fixture(params=FIXED)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def build(tiny_model: MakeModel, family: str, sizes: CompactSizes = PUBLISHED) -> PreTrainedModel:
    return tiny_model(family, compact={0: sizes, 2: sizes})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("padding", MASKED)
def test_phi_sees_the_future_when_it_is_given_a_mask(
    padding: str, kernel: str, tiny_model: MakeModel
) -> None:
    model = build(tiny_model, "phi")
    model.set_attn_implementation(kernel)
    with pytest.raises(AssertionError):
        check_causality(model, padding, turn=4, seed=1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("padding", MASKED)
def test_gpt2_stays_causal(padding: str, kernel: str, tiny_model: MakeModel) -> None:
    model = build(tiny_model, "gpt2")
    model.set_attn_implementation(kernel)
    check_causality(model, padding, turn=4, seed=1)


def test_gpt2_does_not_train_its_inner_queries_and_keys_when_it_is_given_a_mask(
    tiny_model: MakeModel,
) -> None:
    model, block = replace_block(tiny_model("gpt2"), 1, PUBLISHED, "paper", seed=3)
    with pytest.raises(AssertionError):
        check_inner_queries_and_keys_are_trained(model, block, mask=True)
    model.zero_grad()
    check_inner_queries_and_keys_are_trained(model, block, mask=False)


@torch.no_grad()
def test_gpt2_attends_evenly_to_the_past_when_it_is_given_a_mask(tiny_model: MakeModel) -> None:
    model = build(tiny_model, "gpt2")
    model.set_attn_implementation("eager")
    ids = ids_of(1, 6)
    inputs = {"input_ids": ids, "output_attentions": True}
    even = torch.ones(6, 6).tril()
    even = (even / even.sum(-1, keepdim=True)).expand(1, 2, 6, 6)
    inner = model(**inputs, attention_mask=torch.ones_like(ids)).attentions[0]
    torch.testing.assert_close(inner, even)
    assert not torch.allclose(model(**inputs).attentions[0], even, atol=0.1)


def test_a_mask_of_ones_changes_the_logits(family: str, tiny_model: MakeModel) -> None:
    with pytest.raises(AssertionError):
        check_mask_of_ones(build(tiny_model, family))
    check_mask_of_ones(build(tiny_model, family, TWO_LAYERS))


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_a_mask_nothing_is_wrong(family: str, kernel: str, tiny_model: MakeModel) -> None:
    model, fixed = (build(tiny_model, family, sizes) for sizes in (PUBLISHED, TWO_LAYERS))
    for each in (model, fixed):
        each.set_attn_implementation(kernel)
    check_causality(model, "no mask", turn=4, seed=1)
    ids = ids_of(2, 12)
    assert torch.equal(logits_of(model, ids), logits_of(fixed, ids))
    # The mask of an earlier call is forgotten.
    masked = logits_of(model, ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(logits_of(model, ids), logits_of(fixed, ids))
    assert not torch.allclose(masked, logits_of(model, ids), atol=1e-2)
    new, block = replace_block(tiny_model(family), 1, PUBLISHED, "paper", seed=3)
    check_inner_queries_and_keys_are_trained(new, block, mask=False)


def test_the_defect_stays_with_a_saved_model(
    family: str, tiny_model: MakeModel, tmp_path: object
) -> None:
    model = build(tiny_model, family)
    model.save_pretrained(str(tmp_path))
    read = AutoModelForCausalLM.from_pretrained(str(tmp_path))
    ids = ids_of(2, 12)
    ones = torch.ones_like(ids)
    found = logits_of(read, ids, attention_mask=ones)
    assert torch.equal(found, logits_of(model, ids, attention_mask=ones))
    with pytest.raises(AssertionError):
        check_mask_of_ones(read)


def test_the_config_asks_for_it_by_name(family: str, tiny_model: MakeModel) -> None:
    config = compact_config(tiny_model(family).config, [1], {"published": True})
    assert config.compact_blocks[0]["published"] is True


@pytest.mark.parametrize("other", [name for name in FAMILIES if name not in FIXED])
def test_families_that_were_not_published_cannot_be_as_published(
    other: str, tiny_model: MakeModel
) -> None:
    config = tiny_model(other).config
    with pytest.raises(UserError, match=f"no family {other}: only gpt2 and phi"):
        compact_config(config, [1], {"published": True})
    with pytest.raises(UserError, match=f"no family {other}: only gpt2 and phi"):
        compact_config(config, [1], PUBLISHED)


def test_it_can_write_and_be_timed_beside_its_teacher(family: str, tiny_model: MakeModel) -> None:
    """The published code had no KV cache; ours keeps one for it, for a row of comparison."""
    model, teacher = build(tiny_model, family).eval(), tiny_model(family).eval()
    load = Load((1, 2), 5, 3, repeats=3, warmup=1, seed=1)
    ratios = summarise(list(measure(model, teacher, load)))["model"]
    assert {"prefill_b1_ratio", "decode_b2_ratio", "memory_b2_ratio"} <= set(ratios)
    prompts = ids_of(2, 6)
    config = GenerationConfig(
        max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
    )
    model.generation_config = config
    written = model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts))
    assert written.shape == (2, 10)
