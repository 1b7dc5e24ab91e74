"""Layer drop: which blocks go, what is left, and the models of some of a teacher's blocks."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from iskd.baselines import gaps
from iskd.baselines.blocks import keep_blocks
from iskd.baselines.gaps import refit_before_gaps
from iskd.baselines.layer_drop import block_influence, drop_layers
from iskd.errors import UserError
from iskd.models import ChangedBlocks, NarrowSizes, family_of, parameter_count, replace_block
from iskd.models.recipes import block_parameters
from iskd.models.reconstruction import BlockFit
from iskd.training.trials import BlockWalk
from tests.unit.conftest import FAMILIES, SHARE, VOCABULARY, MakeModel

IDS = torch.arange(1, 40)[None]
BLOCKS = 4
INFLUENCE = [0.3, 0.1, 0.4, 0.2]


class Skip(nn.Module):
    """A block that hands on what it gets."""

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden


def count(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())


def skipping(model: PreTrainedModel, indices: Sequence[int]) -> PreTrainedModel:
    """Copy a model; the named blocks hand on what they get."""
    model = copy.deepcopy(model)
    for index in indices:
        family_of(model.config).blocks(model)[index] = Skip()
    return model


@torch.no_grad()
def same_logits(one: PreTrainedModel, other: PreTrainedModel) -> None:
    found, wanted = (m(IDS, use_cache=False).logits for m in (one, other))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def same_with_and_without_cache(model: PreTrainedModel) -> None:
    found, wanted = (
        model.generate(IDS[:, :9], max_new_tokens=12, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_some_blocks_is_the_teacher_with_the_others_skipped(
    family: str, kernel: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family, blocks=BLOCKS)
    teacher.set_attn_implementation(kernel)
    teacher.generation_config.top_k = 7
    kept = keep_blocks(teacher, [1, 2])
    assert type(kept) is type(teacher)
    assert kept.config._attn_implementation == kernel
    assert kept.generation_config.top_k == 7
    assert not kept.training
    assert count(kept) == parameter_count(kept.config)
    same_logits(kept, skipping(teacher, [0, 3]))
    same_with_and_without_cache(kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_the_kept_blocks_counts(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family, blocks=3)
    turned = skipping(teacher, [1])
    blocks = family_of(turned.config).blocks(turned)
    blocks[0], blocks[2] = blocks[2], blocks[0]
    if getattr(turned.config, "layer_types", None):
        types = turned.config.layer_types
        turned.config.layer_types = [types[2], types[1], types[0]]
    same_logits(keep_blocks(teacher, [2, 0]), turned)


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_blocks_copies_the_teacher(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family, blocks=2).train()
    kept = keep_blocks(teacher, [0, 1])
    assert kept.training
    wanted = teacher.state_dict()
    assert kept.state_dict().keys() == wanted.keys()
    for name, value in kept.state_dict().items():
        assert torch.equal(value, wanted[name]), name
        assert value.data_ptr() != wanted[name].data_ptr(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_tied_weights_stay_tied(family: str, tiny_model: MakeModel) -> None:
    for tied in (True, False):
        kept = keep_blocks(tiny_model(family, tie_word_embeddings=tied), [2])
        ends = kept.get_input_embeddings().weight, kept.get_output_embeddings().weight
        assert (ends[0] is ends[1]) == tied


def test_blocks_that_know_their_number_compute_as_before(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2", blocks=BLOCKS, scale_attn_by_inverse_layer_idx=True)
    same_logits(keep_blocks(teacher, [1, 3]), skipping(teacher, [0, 2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_keeps_its_window_in_its_new_place(
    family: str, tmp_path: Path, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family, blocks=3)
    kept = keep_blocks(teacher, [1])
    if getattr(teacher.config, "layer_types", None):
        assert kept.config.layer_types == teacher.config.layer_types[1:2]
        assert kept.config.layer_types != teacher.config.layer_types[:1]
    kept.save_pretrained(tmp_path)
    same_logits(AutoModelForCausalLM.from_pretrained(tmp_path), kept)


def test_kept_blocks_do_not_disturb_what_is_drawn_later(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    keep_blocks(teacher, [0])
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize(
    ("indices", "says"),
    [
        ([], "at least one"),
        ([0, 3], "block 3 does not exist"),
        ([-1], "block -1 does not exist"),
        ([1, 1], "block 1 is named twice"),
    ],
)
def test_blocks_that_cannot_be_kept(indices: list[int], says: str, tiny_model: MakeModel) -> None:
    with pytest.raises(UserError, match=says):
        keep_blocks(tiny_model("gpt2"), indices)


@pytest.mark.parametrize("family", FAMILIES)
def test_influence_is_one_minus_the_cosine_over_all_tokens(
    family: str, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family).train()
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCABULARY, (5, 11), generator=generator)
    found = block_influence(teacher, ids, batch_size=2)
    assert teacher.training
    with torch.no_grad():
        hidden = teacher.eval()(ids, output_hidden_states=True, use_cache=False).hidden_states
    # The last of the library's hidden states is taken after the final norm.
    for before, after, value in zip(hidden[:-2], hidden[1:-1], found, strict=False):
        cosines = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
        assert value == pytest.approx(float(1 - cosines.mean()), abs=1e-5)
    assert len(found) == 3
    assert len({round(value, 3) for value in found}) == 3
    assert all(0.01 < value < 2 for value in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_that_writes_nothing_has_no_influence(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    adapter = family_of(teacher.config).adapter
    with torch.no_grad():
        for writer in adapter.writers:
            for parameter in adapter.blocks(teacher)[1].get_submodule(writer).parameters():
                parameter.zero_()
    influence = block_influence(teacher, IDS, 1)
    assert influence[1] == pytest.approx(0, abs=1e-12)
    model, facts = drop_layers(teacher, influence, count=1)
    assert facts["dropped"] == [1]
    same_logits(model, teacher)


def test_influence_does_not_hang_on_the_batches_or_the_run(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2", dropout=0.5).train()
    ids = torch.randint(VOCABULARY, (6, 9), generator=torch.Generator().manual_seed(5))
    assert block_influence(teacher, ids, 2) == block_influence(teacher, ids, 2)
    # 4 + 2: a mean of the batches' means would weigh the last two sequences double.
    wanted = block_influence(teacher, ids, 1)
    assert block_influence(teacher, ids, 4) == pytest.approx(wanted, abs=1e-6)


def test_a_small_change_is_not_lost_in_half_precision(tiny_model: MakeModel) -> None:
    """In bfloat16 itself, a cosine has steps of 1/256."""
    teacher = tiny_model("gpt2")
    adapter = family_of(teacher.config).adapter
    with torch.no_grad():
        for writer in adapter.writers:
            for parameter in adapter.blocks(teacher)[0].get_submodule(writer).parameters():
                parameter.mul_(0.005)
    wanted = block_influence(teacher, IDS, 1)[0]
    assert 0 < wanted < 1 / 512
    assert block_influence(teacher.to(torch.bfloat16), IDS, 1)[0] == pytest.approx(wanted, rel=0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_lowest_influence_go(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family, blocks=BLOCKS)
    model, facts = drop_layers(teacher, INFLUENCE, count=2)
    assert facts == {
        "influence": INFLUENCE,
        "dropped": [1, 3],
        "narrowed": None,
        "parameters": count(model),
    }
    assert type(model) is type(teacher)
    assert count(model) == count(teacher) - 2 * block_parameters(teacher.config, None)
    same_logits(model, skipping(teacher, [1, 3]))
    same_with_and_without_cache(model)


def test_equal_influence_goes_by_index(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2", blocks=BLOCKS)
    assert drop_layers(teacher, [0.5, 0.2, 0.2, 0.2], count=2)[1]["dropped"] == [1, 2]
    target = count(teacher) - block_parameters(teacher.config, None) * 3 // 2
    facts = drop_layers(teacher, [0.5, 0.2, 0.2, 0.2], parameters=target)[1]
    assert (facts["dropped"], facts["narrowed"]["block"]) == ([1], 2)


@settings(max_examples=40)
@given(
    family=st.sampled_from(FAMILIES),
    influence=st.permutations(INFLUENCE),
    going=st.floats(0.01, 3.99),
    mlp=st.sampled_from([None, 5]),
)
def test_the_target_is_met_to_within_one_neuron(
    family: str, influence: list[float], going: float, mlp: int | None, tiny_model: MakeModel
) -> None:
    """With an MLP that is small beside the attention, too."""
    changes = {} if mlp is None else {"n_inner" if family == "gpt2" else "intermediate_size": mlp}
    teacher = tiny_model(family, blocks=BLOCKS, **changes)
    share = SHARE.get(family, 1)
    one, two = (block_parameters(teacher.config, NarrowSizes(share, n)) for n in (1, 2))
    block = block_parameters(teacher.config, None)
    target = count(teacher) - round(going * block)
    room = -round(going * block) % block
    if room < one and count(teacher) - target > (BLOCKS - 1) * block:
        with pytest.raises(UserError, match="cannot be reached"):
            drop_layers(teacher, influence, parameters=target)
        return
    model, facts = drop_layers(teacher, influence, parameters=target)
    assert count(model) == facts["parameters"] == parameter_count(model.config) <= target
    order = sorted(range(BLOCKS), key=lambda i: influence[i])
    gone = facts["dropped"]
    assert gone == order[: len(gone)]
    narrowed = facts["narrowed"]
    if narrowed is None:
        assert target - count(model) < one
        return
    assert narrowed["block"] == order[len(gone)]
    # Rows of heads are the one thing that a small MLP cannot always fill up to the last neuron.
    heads = block_parameters(teacher.config, NarrowSizes(2 * share, 1)) - one
    assert target - count(model) < (two - one if mlp is None else max(heads, two - one))
    place = sorted({*range(BLOCKS)} - {*gone}).index(narrowed["block"])
    sizes = NarrowSizes(narrowed["heads"], narrowed["mlp"])
    assert ChangedBlocks.of(model.config).narrow == {place: sizes}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_narrowed_block_keeps_its_strongest_heads_and_neurons(
    family: str, tiny_model: MakeModel
) -> None:
    """Units that weigh next to nothing are those that go, so the logits hardly move."""
    teacher = tiny_model(family, blocks=BLOCKS)
    adapter = family_of(teacher.config).adapter
    weak = adapter.blocks(teacher)[3]
    with torch.no_grad():
        for name, writer in zip(("head", "neuron"), adapter.writers, strict=True):
            weight = weak.get_submodule(writer).get_parameter("weight")
            rows = weight.T if isinstance(weak.get_submodule(writer), nn.Linear) else weight
            rows[: rows.shape[0] // (4 if name == "head" else 2)] = 0
    target = count(teacher) - block_parameters(teacher.config, None) * 5 // 4
    model, facts = drop_layers(teacher, INFLUENCE, parameters=target)
    assert facts["dropped"] == [1]
    assert facts["narrowed"]["block"] == 3
    assert facts["narrowed"]["heads"] < teacher.config.num_attention_heads
    same_logits(model, skipping(teacher, [1]))
    same_with_and_without_cache(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_a_narrowed_block_survives_its_folder(
    family: str, tmp_path: Path, tiny_model: MakeModel
) -> None:
    teacher = tiny_model(family, blocks=BLOCKS)
    target = count(teacher) - block_parameters(teacher.config, None) * 3 // 2
    model, facts = drop_layers(teacher, INFLUENCE, parameters=target)
    again, same = drop_layers(teacher, INFLUENCE, parameters=target)
    assert facts == same
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(read(IDS).logits, model(IDS).logits)


def test_a_target_that_is_met_already_drops_nothing(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    for number, parameters in ((0, None), (None, count(teacher))):
        model, facts = drop_layers(teacher, [0.1, 0.2, 0.3], count=number, parameters=parameters)
        assert (facts["dropped"], facts["narrowed"]) == ([], None)
        same_logits(model, teacher)


def test_a_drop_that_leaves_no_block_is_a_users_mistake(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    least = count(teacher) - 3 * block_parameters(teacher.config, None)
    least += block_parameters(teacher.config, NarrowSizes(1, 1))
    model, facts = drop_layers(teacher, [0.3, 0.1, 0.2], parameters=least)
    assert count(model) == least
    assert facts["dropped"] == [1, 2]
    with pytest.raises(UserError, match=f"cannot be reached .* has {least};"):
        drop_layers(teacher, [0.3, 0.1, 0.2], parameters=least - 1)
    with pytest.raises(UserError, match="at least one must stay"):
        drop_layers(teacher, [0.3, 0.1, 0.2], count=3)


def test_what_layer_drop_refuses(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    with pytest.raises(UserError, match="not a number"):
        drop_layers(teacher, [0.1, float("nan"), 0.3], count=1)
    with pytest.raises(ValueError, match="either count or parameters"):
        drop_layers(teacher, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="either count or parameters"):
        drop_layers(teacher, [0.1, 0.2, 0.3], count=1, parameters=1)
    with pytest.raises(ValueError, match="influence of 2 blocks"):
        drop_layers(teacher, [0.1, 0.2], count=1)
    narrow, _ = replace_block(teacher, 0, NarrowSizes(1, 1), "teacher", seed=1)
    with pytest.raises(UserError, match="compressed already"):
        drop_layers(narrow, [0.1, 0.2, 0.3], count=1)
    with pytest.raises(UserError, match="compressed already"):
        keep_blocks(narrow, [0])


def test_named_blocks_go_first(tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2")
    _, facts = drop_layers(model, [0.1, 0.3, 0.2], count=2, first=[1])
    assert facts["dropped"] == [1, 0]
    _, facts = drop_layers(model, [0.1, 0.3, 0.2], count=2, first=[2, 1])
    assert facts["dropped"] == [2, 1]


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_gap_is_bridged_by_the_mlp_before_it(family: str, tiny_model: MakeModel) -> None:
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(1, VOCABULARY, (40, 16), generator=generator)
    teacher = tiny_model(family, blocks=6).eval()
    for number in (2, 3):
        block: Any = family_of(teacher.config).blocks(teacher)[number]
        for parameter in block.parameters():
            parameter.mul_(0.7)
    smaller, facts = drop_layers(teacher, [0.9, 0.8, 0.1, 0.2, 0.7, 0.6], count=2)
    kept = [index for index in range(6) if index not in facts["dropped"]]
    before = {name: value.clone() for name, value in smaller.state_dict().items()}

    def distance() -> float:
        wanted = teacher.base_model(text[30:]).last_hidden_state
        return float((smaller.eval().base_model(text[30:]).last_hidden_state - wanted).norm())

    plain = distance()
    assert refit_before_gaps(smaller, teacher, kept, text[:30], 8) == [1]
    assert distance() < plain
    changed = {n for n, value in smaller.state_dict().items() if not torch.equal(value, before[n])}
    writer = family_of(teacher.config).adapter.writers[1]
    assert changed
    assert all(f".1.{writer}." in name for name in changed)


def test_a_second_gap_is_fitted_to_what_the_first_has_become(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(1, VOCABULARY, (24, 16), generator=generator)
    teacher, kept = tiny_model("llama", blocks=6), [0, 2, 3, 5]
    smaller = keep_blocks(teacher, kept)
    seen: list[torch.Tensor] = []

    def fit(*args: Any, **how: Any) -> BlockFit:
        seen.append(args[4][0].hidden.clone())
        return BlockFit(*args, **how)

    monkeypatch.setattr(gaps, "BlockFit", fit)
    assert refit_before_gaps(smaller, teacher, kept, text, 8) == [0, 3]
    walk = BlockWalk(smaller, text, 8)
    walk.advance()
    walk.advance()
    assert torch.equal(walk.calls()[0].hidden, seen[1])


def test_without_a_gap_nothing_is_refitted(tiny_model: MakeModel) -> None:
    teacher = tiny_model("llama", blocks=4)
    smaller = keep_blocks(teacher, [1, 2, 3])
    before = copy.deepcopy(smaller.state_dict())
    assert refit_before_gaps(smaller, teacher, [1, 2, 3], IDS.expand(4, -1), 2) == []
    assert all(torch.equal(value, before[name]) for name, value in smaller.state_dict().items())
