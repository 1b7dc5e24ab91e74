"""What a compressed decoder owes: causality, padding, caches, kernels, gradients, its folder."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

from iskd.models import ChangedBlocks, CompactSizes, NarrowSizes, family_of
from iskd.models.substitution import replace_block
from tests.unit.conftest import FAMILIES, POSITIONS, SHARE, VOCABULARY, MakeModel

TWO_LAYERS = CompactSizes(width=16, heads=2, blocks=2, mlp=24, positions=POSITIONS)
BARE = CompactSizes(width=16, heads=1, blocks=1, mlp=24, positions=0, activation="gelu")
# First block, last block, all blocks, neighbours of a narrow one: slot 0 of the cache is special.
MIXTURES: dict[str, dict[str, dict[int, Any]]] = {
    "first": {"compact": {0: TWO_LAYERS}},
    "last": {"compact": {2: TWO_LAYERS}},
    "all": {"compact": dict.fromkeys(range(3), TWO_LAYERS)},
    "bare": {"compact": {0: BARE, 1: BARE}},
    "mixed": {
        "compact": {
            0: CompactSizes(width=8, heads=1, blocks=3, mlp=8, positions=POSITIONS),
            2: TWO_LAYERS,
        },
        "narrow": {1: NarrowSizes(heads=3, mlp=5)},
    },
    "narrow": {"narrow": {0: NarrowSizes(heads=1, mlp=1), 2: NarrowSizes(heads=4, mlp=100)}},
    "no attention": {"narrow": {2: NarrowSizes(heads=0, mlp=20)}},
    "no mlp": {"narrow": {0: NarrowSizes(heads=2, mlp=0), 1: NarrowSizes(heads=4, mlp=0)}},
    "no block": {"compact": {0: TWO_LAYERS}, "narrow": {2: NarrowSizes(heads=0, mlp=0)}},
}


def changed(family: str, mixture: str) -> dict[str, dict[int, Any]]:
    """Give a mixture in a family's own heads, of which several may share keys and values."""
    given = MIXTURES[mixture]
    share = SHARE.get(family, 1)
    narrow = {i: replace(s, heads=s.heads * share) for i, s in given.get("narrow", {}).items()}
    return {**given, "narrow": narrow}


@pytest.fixture(params=[(f, m) for f in FAMILIES for m in MIXTURES], ids="-".join)
def model(request: pytest.FixtureRequest, tiny_model: MakeModel) -> PreTrainedModel:
    family, mixture = request.param
    return tiny_model(family, **changed(family, mixture))


def ids_of(sequences: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (sequences, length), generator=generator)


def places(mask: torch.Tensor) -> torch.Tensor:
    """Count positions from each sequence's first real token, as generation does."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, **given).logits
    return logits


def check_causality(model: PreTrainedModel, padding: str, turn: int, seed: int) -> None:
    """Change everything from real token ``turn`` on: no logit before it may move."""
    length, pad = 12, 3
    ids = ids_of(2, length, seed)
    given_mask: dict[str, torch.Tensor] = {}
    first, last = 0, length
    if padding != "no mask":
        mask = torch.ones_like(ids)
        if padding == "left":
            mask[:, :pad] = 0
            first = pad
        elif padding == "right":
            mask[:, -pad:] = 0
            last = length - pad
        given_mask = {"attention_mask": mask, "position_ids": places(mask)}
    cut = min(first + turn, last - 1)
    other = ids.clone()
    other[:, cut:] = (other[:, cut:] % (VOCABULARY - 1)) + 1
    before, after = (logits_of(model, i, **given_mask) for i in (ids, other))
    assert torch.equal(before[:, first:cut], after[:, first:cut])
    assert not torch.allclose(before[:, cut:last], after[:, cut:last], atol=1e-2)


PADDINGS = ["no mask", "all ones", "left", "right"]
KERNELS = ["sdpa", "eager"]
_BLOCK = st.sampled_from(["full", "narrow", "compact"])


@settings(max_examples=25)
@given(
    family=st.sampled_from(FAMILIES),
    kinds=st.lists(_BLOCK, min_size=3, max_size=3),
    inner=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.sampled_from(PADDINGS),
    kernel=st.sampled_from(KERNELS),
    turn=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_no_logit_depends_on_a_later_token(
    *,
    family: str,
    kinds: list[str],
    inner: tuple[int, int],
    padding: str,
    kernel: str,
    turn: int,
    seed: int,
    tiny_model: MakeModel,
) -> None:
    heads, layers = inner
    sizes = CompactSizes(width=16, heads=heads, blocks=layers, mlp=16, positions=POSITIONS)
    model = tiny_model(
        family,
        compact={i: sizes for i, kind in enumerate(kinds) if kind == "compact"},
        narrow={i: NarrowSizes(2, 9) for i, kind in enumerate(kinds) if kind == "narrow"},
        seed=seed,
    )
    model.set_attn_implementation(kernel)
    check_causality(model, padding, turn, seed)


# Every number of replaced blocks, as a chain of substitutions goes through them.
@pytest.mark.parametrize("replaced", [[1], [1, 0], [1, 0, 2]], ids=len)
@pytest.mark.parametrize("recipe", ["paper", "bottleneck", "narrow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_every_recipe_is_causal(
    family: str, recipe: str, replaced: list[int], tiny_model: MakeModel
) -> None:
    # So small a teacher has no narrow block of the size of the paper's.
    reduction = 0.1 * len(replaced) if recipe == "narrow" else None
    model = tiny_model(family, recipe=recipe, replaced=replaced, reduction=reduction)
    for kernel in KERNELS:
        model.set_attn_implementation(kernel)
        for turn, padding in enumerate(PADDINGS, start=4):
            check_causality(model, padding, turn, seed=turn)


def check_mask_of_ones(model: PreTrainedModel) -> None:
    """A mask that hides nothing is no mask."""
    ids = ids_of(2, 12)
    masked = logits_of(model, ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(masked, logits_of(model, ids), atol=1e-4, rtol=1e-5)


def test_a_mask_of_ones_changes_nothing(model: PreTrainedModel) -> None:
    check_mask_of_ones(model)


def test_every_earlier_token_counts(model: PreTrainedModel) -> None:
    ids = ids_of(1, 10)
    whole = logits_of(model, ids)[0, -1]
    for place in range(9):
        other = ids.clone()
        other[0, place] = other[0, place] % (VOCABULARY - 1) + 1
        assert not torch.allclose(whole, logits_of(model, other)[0, -1], atol=1e-5), place


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_padded_batch_equals_batches_of_one(
    model: PreTrainedModel, side: str, kernel: str
) -> None:
    model.set_attn_implementation(kernel)
    sequences = [ids_of(1, length, seed=length)[0] for length in (4, 9, 12)]
    batch, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    spans = [slice(12 - len(s), 12) if side == "left" else slice(0, len(s)) for s in sequences]
    for row, (sequence, span) in enumerate(zip(sequences, spans, strict=True)):
        batch[row, span], mask[row, span] = sequence, 1
    padded = logits_of(model, batch, attention_mask=mask, position_ids=places(mask))
    for row, (sequence, span) in enumerate(zip(sequences, spans, strict=True)):
        alone = logits_of(model, sequence[None])[0]
        torch.testing.assert_close(padded[row, span], alone, atol=1e-4, rtol=1e-5)


def test_sdpa_equals_eager_before_and_after_a_switch(model: PreTrainedModel) -> None:
    ids = ids_of(2, 16)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    found = []
    for kernel in ("sdpa", "eager", "sdpa"):
        model.set_attn_implementation(kernel)
        found.append(logits_of(model, ids, attention_mask=mask, position_ids=places(mask)))
    real = mask.bool()
    torch.testing.assert_close(found[0][real], found[1][real], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], found[2])


def test_the_kernel_of_the_outer_config_reaches_the_inner_layers(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import sdpa_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls: list[str] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append("sdpa")
        return sdpa_attention.sdpa_attention_forward(*arguments, **named)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", counted)
    for family in FAMILIES:
        model = tiny_model(family, **changed(family, "mixed"))
        model.set_attn_implementation("sdpa")
        logits_of(model, ids_of(1, 4))
        assert len(calls) == 3 + 1 + 2, family
        calls.clear()
        model.set_attn_implementation("eager")
        logits_of(model, ids_of(1, 4))
        assert not calls, family


@pytest.mark.parametrize("cache", ["dynamic", "lazy", "static"])
def test_cached_and_uncached_generation_give_the_same_tokens(
    model: PreTrainedModel, cache: str
) -> None:
    ids, mask = ids_of(3, 7), torch.ones(3, 7, dtype=torch.long)
    mask[0, :4] = 0
    mask[1, :1] = 0
    options: dict[str, Any] = {
        "attention_mask": mask,
        "max_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    plain = model.generate(ids, use_cache=False, **options)
    kept = {
        "dynamic": lambda: DynamicCache(config=model.config),
        "lazy": DynamicCache,
        "static": lambda: StaticCache(config=model.config, max_cache_len=32),
    }[cache]()
    assert torch.equal(model.generate(ids, past_key_values=kept, **options), plain)
    assert kept.get_seq_length() == 7 + 12 - 1
    assert torch.equal(model.generate(ids, **options), plain)


def test_beams_reorder_every_slot_of_the_cache(model: PreTrainedModel) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 10,
        "num_beams": 3,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    ids = ids_of(2, 5)
    cached, plain = (model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)


def test_logits_with_a_cache_equal_those_without(model: PreTrainedModel) -> None:
    ids = ids_of(2, 14)
    cache = DynamicCache(config=model.config)
    parts = [
        logits_of(model, part, past_key_values=cache, use_cache=True)
        for part in ids.split([5, 1, 1, 4, 3], dim=1)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), logits_of(model, ids), atol=1e-4, rtol=1e-5)


def test_the_folder_gives_the_model_back_bit_for_bit(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is type(model)
    state, again = model.state_dict(), read.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    ids = ids_of(2, 20)
    assert torch.equal(logits_of(model, ids), logits_of(read, ids))
    read.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def query_and_key_gradients(layer: nn.Module, heads: int) -> list[torch.Tensor]:
    """Find an inner layer's gradients of queries and keys, which two families fuse."""
    gradients = {
        name.split(".")[-2]: parameter.grad
        for name, parameter in layer.named_parameters()
        if parameter.grad is not None and parameter.ndim == 2
    }
    if "c_attn" in gradients:
        return list(gradients["c_attn"].chunk(3, dim=1)[:2])
    if "query_key_value" in gradients:
        # Each head's queries, keys and values lie together.
        fused = gradients["query_key_value"]
        by_head = fused.view(heads, 3, -1, fused.shape[-1])
        return [by_head[:, 0], by_head[:, 1]]
    return [gradients["q_proj"], gradients["k_proj"]]


def check_inner_queries_and_keys_are_trained(
    model: PreTrainedModel, block: nn.Module, *, mask: bool
) -> None:
    ids = ids_of(2, 16)
    given_mask = {"attention_mask": torch.ones_like(ids)} if mask else {}
    model(input_ids=ids, labels=ids, **given_mask).loss.backward()
    for layer in block.get_submodule("blocks").children():
        for gradient in query_and_key_gradients(layer, TWO_LAYERS.heads):
            assert gradient.abs().max() > 0
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_inner_queries_and_keys_are_trained(family: str, mask: bool, tiny_model: MakeModel) -> None:
    model, block = replace_block(tiny_model(family), 1, TWO_LAYERS, "paper", seed=3)
    check_inner_queries_and_keys_are_trained(model, block, mask=mask)


def test_gradient_checkpointing_gives_the_same_gradients(model: PreTrainedModel) -> None:
    ids = ids_of(2, 12)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.gradient_checkpointing_enable()
    checked = gradients()
    model.gradient_checkpointing_disable()
    assert plain.keys() == checked.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checked[name], gradient, msg=name)


def dropouts(module: nn.Module) -> set[float]:
    """Give the dropout rates of a module: of its layers, and of its attention's own function."""
    rates = {m.p for m in module.modules() if isinstance(m, nn.Dropout)}
    # The Llama relatives have no dropout but this one.
    own = [getattr(m, "attention_dropout", None) for m in module.modules()]
    return rates | {rate for rate in own if isinstance(rate, float)}


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_the_outer_model_reaches_the_compact_block(
    family: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(family, compact={1: TWO_LAYERS}, dropout=0.5)
    whole, compact, _ = family_of(model.config).blocks(model)
    assert dropouts(whole) == {0.5}
    for layer in compact.get_submodule("blocks").children():
        assert dropouts(layer) == {0.5}
    embeds = family_of(model.config).adapter.dropout is not None
    assert dropouts(compact.get_submodule("drop")) == {0.5 if embeds else 0.0}
    ids = ids_of(1, 9)
    quiet = logits_of(model, ids)
    assert torch.equal(quiet, logits_of(model, ids))
    torch.manual_seed(0)
    # Only the compact block is noisy, so what moves is its own dropout.
    compact.train()
    assert not torch.allclose(quiet, logits_of(model, ids))


def test_hidden_states_are_those_between_the_outer_blocks(model: PreTrainedModel) -> None:
    ids = ids_of(1, 5)
    seen: list[torch.Tensor] = []
    for block in family_of(model.config).blocks(model):
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        last = model.base_model(input_ids=ids).last_hidden_state
    assert [tuple(state.shape) for state in states] == [(1, 5, 32)] * 4
    assert all(torch.equal(a, b) for a, b in zip(states[:3], seen, strict=False))
    # As the library does it: the last is what the head reads, after the final norm.
    assert torch.equal(states[3], last)
    with torch.no_grad():
        chosen = model(input_ids=ids, output_hidden_states=[-1]).hidden_states
    assert [state is None for state in chosen] == [True, True, True, False]
    assert torch.equal(chosen[3], last)


def test_attentions_are_those_of_every_layer(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = model(input_ids=ids_of(1, 5), output_attentions=True).attentions
    heads: list[int] = []
    for index in range(3):
        blocks = ChangedBlocks.of(model.config)
        if index in blocks.compact:
            heads += [blocks.compact[index].heads] * blocks.compact[index].blocks
        elif index in blocks.narrow:
            # A block without attention has none to give.
            heads += [blocks.narrow[index].heads] * bool(blocks.narrow[index].heads)
        else:
            heads.append(model.config.num_attention_heads)
    assert [tuple(attention.shape) for attention in given] == [(1, n, 5, 5) for n in heads]
    for attention in given:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
        assert not attention.triu(1).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_models_run(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family, **changed(family, "mixed"))
    exact = logits_of(model, ids_of(1, 9))
    rough = logits_of(model.to(torch.bfloat16), ids_of(1, 9))
    assert rough.dtype == torch.bfloat16
    assert rough.isfinite().all()
    assert (exact.argmax(-1) == rough.argmax(-1)).float().mean() > 0.5


def test_the_meta_device_holds_the_same_model(model: PreTrainedModel) -> None:
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    assert type(empty) is type(model)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    shapes, wanted = ({n: v.shape for n, v in m.state_dict().items()} for m in (empty, model))
    assert shapes == wanted
    assert empty.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_model_is_one_graph_and_equals_the_eager_one(
    family: str, tiny_model: MakeModel
) -> None:
    torch.compiler.reset()
    model = tiny_model(family, **changed(family, "mixed"))
    ids = ids_of(2, 9)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        found = compiled(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, logits_of(model, ids, use_cache=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_device_map_keeps_a_block_in_one_place(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family, **changed(family, "mixed"))
    path = family_of(model.config).adapter.blocks_path
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    maps = [
        # What does not fit goes to the disk, wherever the room ends.
        infer_auto_device_map(
            model,
            max_memory={"cpu": whole * part // 12},
            no_split_module_classes=list(model._no_split_modules),
        )
        for part in range(1, 12)
    ]
    assert any(f"{path}.0" in where for where in maps)
    assert not [name for where in maps for name in where if re.match(rf"{path}\.\d+\.", name)]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_on_disk_give_the_same_logits(
    family: str, tmp_path: Path, tiny_model: MakeModel
) -> None:
    model = tiny_model(family, **changed(family, "mixed"))
    model.save_pretrained(tmp_path / "model")
    where: dict[str, str] = {name: "cpu" for name, _ in model.base_model.named_children()}
    where = {f"{model.base_model_prefix}.{name}": "cpu" for name in where}
    where |= {name: "cpu" for name, _ in model.named_children() if name != model.base_model_prefix}
    path = family_of(model.config).adapter.blocks_path
    del where[path]
    where |= {f"{path}.0": "disk", f"{path}.1": "cpu", f"{path}.2": "cpu"}
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=where, offload_folder=tmp_path / "offloaded"
    )
    assert next(family_of(model.config).blocks(read)[0].parameters()).device.type == "meta"
    ids = ids_of(1, 8)
    assert torch.equal(logits_of(read, ids), logits_of(model, ids))
