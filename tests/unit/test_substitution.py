"""Replacing one block: what is new, what is kept, what is refused."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from iskd.errors import UserError
from iskd.models import (
    ChangedBlocks,
    CompactSizes,
    NarrowSizes,
    compact_config,
    family_of,
    narrow_config,
    replace_block,
    replace_blocks,
)
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, MakeModel

SIZES = CompactSizes(width=16, heads=2, blocks=2, mlp=24, positions=POSITIONS)
IDS = torch.arange(1, 30)[None]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("index", [0, 1, 2])
def test_every_other_weight_is_kept_bit_for_bit(
    family: str, index: int, tiny_model: MakeModel
) -> None:
    model = tiny_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new, block = replace_block(model, index, SIZES, "paper", seed=1)
    assert family_of(new.config).blocks(new)[index] is block
    own = f"{family_of(new.config).adapter.blocks_path}.{index}."
    after = new.state_dict()
    kept = [name for name in before if not name.startswith(own)]
    assert {name for name in after if not name.startswith(own)} == set(kept)
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {id(p) for p in block.parameters()} <= {id(p) for p in new.parameters()}


def test_earlier_compact_blocks_are_kept_too(family: str, tiny_model: MakeModel) -> None:
    first, _ = replace_block(tiny_model(family), 2, SIZES, "paper", seed=1)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    second, _ = replace_block(first, 0, SIZES, "paper", seed=2)
    own = f"{family_of(first.config).adapter.blocks_path}.0."
    for name, value in first.state_dict().items():
        if not name.startswith(own):
            assert torch.equal(value, second.state_dict()[name]), name
    assert [entry["index"] for entry in second.config.compact_blocks] == [0, 2]


def test_a_block_that_starts_as_a_skip_is_just_gone(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    new, _ = replace_block(model, 1, SIZES, "zero_up", seed=1)
    narrow, _ = replace_block(model, 1, NarrowSizes(2, 7), "zero_up", seed=1)
    shorter = tiny_model(family)
    blocks = family_of(shorter.config).blocks(shorter)
    del blocks[1]
    shorter.config.num_hidden_layers = 2
    if types := getattr(shorter.config, "layer_types", None):
        shorter.config.layer_types = [types[0], types[2]]
    with torch.no_grad():
        wanted = shorter(IDS, use_cache=False).logits
        torch.testing.assert_close(new(IDS).logits, wanted)
        torch.testing.assert_close(narrow(IDS).logits, wanted)
        assert not torch.allclose(model(IDS).logits, wanted, atol=0.1)


def test_the_seed_decides_on_the_new_block(family: str, tiny_model: MakeModel) -> None:
    states = [
        replace_block(tiny_model(family), 1, SIZES, "paper", seed=seed)[1].state_dict()
        for seed in (5, 5, 6)
    ]
    matrices = [n for n, v in states[0].items() if v.ndim == 2]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not any(torch.equal(states[0][n], states[2][n]) for n in matrices)


def test_the_global_random_state_is_left_alone(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    random.seed(4)
    torch.manual_seed(4)
    states = torch.get_rng_state(), random.getstate()
    replace_block(model, 1, SIZES, "paper", seed=5)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_the_block_starts_as_the_published_code_has_it(family: str, tiny_model: MakeModel) -> None:
    """Xavier for the projections but in Phi's block, and inside what the family does."""
    model = tiny_model(family)
    sizes = CompactSizes(width=64, heads=2, blocks=2, mlp=64, positions=POSITIONS)
    _, block = replace_block(model, 1, sizes, "paper", seed=1)
    limit = (6 / (32 + 64)) ** 0.5
    for name, value in block.named_parameters():
        if value.ndim == 1:
            wanted = 1.0 if "norm" in name or "ln_" in name else 0.0
            assert value.unique().tolist() == [wanted if name.endswith("weight") else 0.0], name
        elif name.split(".")[0] in ("down", "up") and family != "phi":
            assert value.abs().max() <= limit
            assert value.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
        else:
            # GPT-2 starts what writes into the stream smaller, by the root of twice the depth: 2.
            scale = 0.01 if name.endswith("c_proj.weight") else 0.02
            assert value.std().item() == pytest.approx(scale, rel=0.1), name


@pytest.mark.parametrize("index", [-1, 3, 10])
def test_a_block_that_does_not_exist_is_refused(
    family: str, index: int, tiny_model: MakeModel
) -> None:
    with pytest.raises(UserError, match=f"block {index} does not exist.* 0 to 2"):
        replace_block(tiny_model(family), index, SIZES, "paper", seed=1)


def test_a_block_is_compact_only_once(family: str, tiny_model: MakeModel) -> None:
    model, _ = replace_block(tiny_model(family), 1, SIZES, "paper", seed=1)
    with pytest.raises(UserError, match="only once"):
        replace_block(model, 1, SIZES, "paper", seed=1)


def test_a_narrow_block_can_become_compact_but_not_the_other_way(
    family: str, tiny_model: MakeModel
) -> None:
    left = NarrowSizes(SHARE.get(family, 1), 6)
    narrow = tiny_model(family, narrow={1: NarrowSizes(2, 5), 2: left})
    model, block = replace_block(narrow, 1, SIZES, "paper", seed=1)
    assert ChangedBlocks.of(model.config) == ChangedBlocks({1: SIZES}, {2: left})
    assert type(block).__name__.startswith("Compact")
    with pytest.raises(UserError, match="only once"):
        narrow_config(model.config, {1: NarrowSizes(1, 1)})


@pytest.mark.parametrize("training", [True, False])
def test_mode_precision_and_kernel_go_along(
    family: str, training: bool, tiny_model: MakeModel
) -> None:
    model = tiny_model(family).to(torch.bfloat16).train(training)
    model.set_attn_implementation("eager")
    new, block = replace_block(model, 1, SIZES, "paper", seed=1)
    assert {m.training for m in new.modules()} == {training}
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert new.config._attn_implementation == "eager"
    assert block.get_parameter("up.weight").device == model.device


def test_tied_weights_stay_tied(tiny_model: MakeModel) -> None:
    new, _ = replace_block(tiny_model("gpt2"), 1, SIZES, "paper", seed=1)
    assert new.get_output_embeddings().weight is new.get_input_embeddings().weight


def test_settings_of_the_teacher_survive(family: str, tiny_model: MakeModel) -> None:
    activation = "activation_function" if family == "gpt2" else "hidden_act"
    model = tiny_model(family, bos_token_id=7, eos_token_id=8, **{activation: "relu"})
    model.generation_config.max_new_tokens = 5
    new, _ = replace_block(model, 1, SIZES, "paper", seed=1)
    written = new.config.to_dict()
    if "layer_types" in written:
        # The list goes on with the cache slot of the second inner layer, of its block's type.
        types = written["layer_types"]
        assert types[3:] == [types[1]]
        written["layer_types"] = types[:3]
    for key, value in model.config.to_dict().items():
        if key not in ("architectures", "model_type", "dtype"):
            assert written[key] == value, key
    assert new.generation_config.max_new_tokens == 5


def test_the_layer_types_of_a_config_are_made_anew_at_every_step(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    """A config that is read back carries entries for cache slots; they must not pile up."""
    config = tiny_model(family).config
    types = list(getattr(config, "layer_types", None) or [])
    for index in (1, 0, 2):
        config = compact_config(config, [index], SIZES)
        folder = tmp_path / str(index)
        config.save_pretrained(folder)
        config = AutoConfig.from_pretrained(folder)
        config.save_pretrained(folder / "again")
        again = folder / "again" / "config.json"
        assert (folder / "config.json").read_bytes() == again.read_bytes()
    if types:
        # One more slot per block, in the order of the blocks, whatever order they went in.
        assert config.layer_types == types * 2
    else:
        assert getattr(config, "layer_types", None) is None
    assert len(config.per_layer_config) == 6
    model = AutoModelForCausalLM.from_config(config).eval()
    cached, plain = (
        model.generate(IDS[:, :9], max_new_tokens=4, use_cache=use, do_sample=False)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)
    # A compact block stays one also where a narrow one joins it later.
    share = SHARE.get(family, 1)
    first = compact_config(tiny_model(family).config, [2], SIZES)
    both = narrow_config(first, {0: NarrowSizes(share, 3)})
    assert ChangedBlocks.of(both) == ChangedBlocks({2: SIZES}, {0: NarrowSizes(share, 3)})
    assert AutoModelForCausalLM.from_config(both)(IDS).logits.isfinite().all()


def test_several_blocks_go_at_once_as_one_by_one(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family)
    narrow = NarrowSizes(SHARE.get(family, 1), 5)
    new, blocks = replace_blocks(model, {2: SIZES, 0: narrow}, "zero_up", seed=1)
    assert ChangedBlocks.of(new.config) == ChangedBlocks({2: SIZES}, {0: narrow})
    assert list(blocks) == [2, 0]
    first, _ = replace_block(model, 0, narrow, "zero_up", seed=1)
    second, _ = replace_block(first, 2, SIZES, "zero_up", seed=1)
    with torch.no_grad():
        torch.testing.assert_close(new(IDS).logits, second(IDS).logits)


def test_a_teachers_rotary_settings_reach_the_compact_block(tiny_model: MakeModel) -> None:
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
    model = tiny_model("phi", rope_parameters=rope)
    new = AutoModelForCausalLM.from_config(compact_config(model.config, [1], SIZES))
    block = family_of(new.config).blocks(new)[1]
    rotary = block.get_submodule("rotary")
    # A head of 8, a quarter of it rotated: one pair, and one frequency.
    assert rotary.get_buffer("inv_freq").tolist() == [1.0]
    assert new(IDS).logits.isfinite().all()


def test_heads_are_not_parted_from_the_key_they_share(tiny_model: MakeModel) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="multiple of 2"):
        narrow_config(model.config, {1: NarrowSizes(3, 5)})


def test_a_block_is_narrowed_only_once(tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2", narrow={1: NarrowSizes(2, 5)})
    with pytest.raises(UserError, match="only once"):
        narrow_config(model.config, {1: NarrowSizes(1, 5)})


def test_norms_of_queries_and_keys_keep_the_heads_size(tiny_model: MakeModel) -> None:
    model = tiny_model("phi", qk_layernorm=True)
    sizes = NarrowSizes(heads=model.config.num_attention_heads, mlp=128)
    same, _ = replace_block(model, 1, sizes, "teacher", seed=1)
    torch.testing.assert_close(same(IDS).logits, model(IDS).logits)
    fewer, _ = replace_block(model, 1, NarrowSizes(heads=1, mlp=7), "teacher", seed=1)
    assert fewer(IDS).logits.isfinite().all()


def test_rotary_angles_made_for_one_head_size_are_refused() -> None:
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 16,
            "long_factor": [2.0] * 16,
            "original_max_position_embeddings": 32,
        },
    )
    with pytest.raises(UserError, match="rope_type longrope"):
        compact_config(config, [0])
