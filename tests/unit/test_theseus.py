"""Stochastic replacement: which block runs when, and that nothing of it stays behind."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import CompactSizes, family_of, replace_block
from iskd.settings import LearningRates, TrainingSettings
from iskd.training.loop import fine_tune
from iskd.training.objectives import next_token_loss
from iskd.training.optimizer import parameter_groups
from iskd.training.theseus import StochasticBlocks
from tests.unit.conftest import POSITIONS, VOCABULARY, MakeModel

FAMILIES = ["gpt2", "phi", "llama", "gpt_neox"]
SIZES = CompactSizes(width=16, heads=2, blocks=1, mlp=24, positions=POSITIONS)
SETTINGS = TrainingSettings(
    epochs=1,
    batch_size=2,
    learning_rate=LearningRates(compact=1e-2, rest=1e-3),
    optimizer="adamw",
    weight_decay=0.01,
    beta2=0.999,
    schedule="linear",
    warmup=0.0,
    clip=1.0,
    precision="float32",
)


def random_sequences(count: int, length: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(1, VOCABULARY, (count, length), generator=generator, dtype=torch.int32)


def replaced(
    teacher: PreTrainedModel, *indices: int
) -> tuple[PreTrainedModel, dict[int, nn.Module], list[nn.Module]]:
    """Give a model with compact blocks at the indices, the originals, and the compact blocks."""
    blocks = family_of(teacher.config).blocks(teacher)
    originals = {index: copy.deepcopy(blocks[index]) for index in indices}
    model = teacher
    for index in indices:
        model, _ = replace_block(model, index, SIZES, "paper", index)
    own = family_of(model.config).blocks(model)
    return model, originals, [own[index] for index in indices]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=random_sequences(2).long(), use_cache=False).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_with_probability_one_it_is_plain_training(family: str, tiny_model: MakeModel) -> None:
    results, histories = [], []
    for stochastic in (False, True):
        model, originals, new = replaced(tiny_model(family, dropout=0.2), 1)
        if stochastic:
            with StochasticBlocks(model, originals, first=1.0, curriculum=1.0, seed=1) as mixed:
                rows = fine_tune(
                    model, random_sequences(8), SETTINGS, seed=3, compact=new, on_update=mixed.draw
                )
        else:
            rows = fine_tune(model, random_sequences(8), SETTINGS, seed=3, compact=new)
        results.append(state(model))
        histories.append(rows)
    assert same(*results)
    assert histories[0] == histories[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_originals_the_model_is_the_teacher(family: str, tiny_model: MakeModel) -> None:
    teacher = tiny_model(family)
    model, originals, _ = replaced(teacher, 0, 2)
    wanted, compact = logits(teacher), logits(model)
    assert not torch.allclose(wanted, compact)
    with StochasticBlocks(model, originals, first=0.0, curriculum=1.0, seed=1) as mixed:
        assert torch.equal(logits(model), compact)
        assert mixed.draw(0, 10) == (False, False)
        assert torch.equal(logits(model), wanted)
        model.train()
        assert torch.equal(logits(model), wanted)
        model.eval()
    assert torch.equal(logits(model), compact)


@pytest.mark.parametrize("family", FAMILIES)
def test_originals_are_never_trained_and_compact_blocks_only_when_used(
    family: str, tiny_model: MakeModel
) -> None:
    model, originals, (first, second) = replaced(tiny_model(family), 0, 2)
    kept = {index: state(block) for index, block in originals.items()}
    batch = {"input_ids": random_sequences(2).long()}
    with StochasticBlocks(model, originals, first=0.5, curriculum=1.0, seed=1) as mixed:
        update = next(n for n in range(50) if mixed.draw(n, 100) == (True, False))
        mixed.draw(update, 100)
        next_token_loss(model, batch).backward()
        assert all(p.grad is not None for p in first.parameters())
        assert all(p.grad is None for p in second.parameters())
        # The gradient goes through the original to what lies before it.
        assert model.get_input_embeddings().weight.grad.any()
        model.zero_grad()
        fine_tune(model, random_sequences(8), SETTINGS, seed=1, on_update=mixed.draw)
    for index, block in originals.items():
        assert same(state(block), kept[index])
        assert not any(p.requires_grad or p.grad is not None for p in block.parameters())


def test_an_original_has_no_dropout(tiny_model: MakeModel) -> None:
    model, originals, (block,) = replaced(tiny_model("gpt2", dropout=0.5), 1)
    originals[1].train()
    with StochasticBlocks(model, originals, first=0.0, curriculum=1.0, seed=1) as mixed:
        mixed.draw(0, 10)
        model.train()
        x = torch.rand(1, 3, 32)
        assert torch.equal(block(x), block(x))


def test_originals_are_in_no_group_and_no_saved_state(tiny_model: MakeModel) -> None:
    model, originals, new = replaced(tiny_model("gpt2"), 1)
    names = list(model.state_dict())
    with StochasticBlocks(model, originals, first=0.5, curriculum=1.0, seed=1):
        assert list(model.state_dict()) == names
        groups = parameter_groups(model, new, SETTINGS)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters()}
    assert not grouped & {id(p) for p in originals[1].parameters()}
    fast = {id(p) for group in groups if group["lr"] == 1e-2 for p in group["params"]}
    assert fast == {id(p) for p in new[0].parameters()}


def test_afterwards_the_compact_blocks_are_as_they_were(tiny_model: MakeModel) -> None:
    model, originals, new = replaced(tiny_model("gpt2"), 0, 2)
    attributes = [set(block.__dict__) for block in new]
    before = state(model)

    def fail() -> None:
        with StochasticBlocks(model, originals, first=0.0, curriculum=1.0, seed=1) as mixed:
            mixed.draw(0, 2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    blocks = family_of(model.config).blocks(model)
    assert [blocks[0], blocks[2]] == new
    assert [set(block.__dict__) for block in new] == attributes
    assert same(state(model), before)
    copy.deepcopy(model)


def test_arguments_attributes_and_hooks_come_through(tiny_model: MakeModel) -> None:
    model, _, (block,) = replaced(tiny_model("gpt2"), 1)
    block.__dict__["attention_type"] = "full_attention"
    seen: list[Any] = []

    class Original(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            seen.append((args, kwargs))
            return (args[0] * 2, "more")

    with StochasticBlocks(model, {1: Original()}, first=0.0, curriculum=1.0, seed=1) as mixed:
        mixed.draw(0, 10)
        inside = family_of(model.config).blocks(model)[1]
        assert inside.attention_type == "full_attention"
        outputs: list[Any] = []
        handle = inside.register_forward_hook(lambda _, args, out: outputs.append(out))
        x = torch.ones(1, 2, 32)
        out = inside(x, None, "mask", position_ids=3, use_cache=False)
        handle.remove()
    assert seen == [((x, None, "mask"), {"position_ids": 3, "use_cache": False})]
    assert out[1] == "more"
    assert outputs == [out]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_sees_the_same_choice(family: str, tiny_model: MakeModel) -> None:
    found = []
    for checkpointing in (False, True):
        model, originals, _ = replaced(tiny_model(family), 0, 2)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        with StochasticBlocks(model, originals, first=0.5, curriculum=1.0, seed=1) as mixed:
            update = next(n for n in range(50) if mixed.draw(n, 100) == (True, False))
            mixed.draw(update, 100)
            next_token_loss(model, {"input_ids": random_sequences(2).long()}).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[0], found[1])


def test_the_draws_follow_the_seed_and_the_update_alone(tiny_model: MakeModel) -> None:
    model, originals, _ = replaced(tiny_model("gpt2"), 0, 2)

    def draws(seed: int, updates: range = range(60)) -> list[tuple[bool, ...]]:
        mixed = StochasticBlocks(model, originals, first=0.3, curriculum=1.0, seed=seed)
        return [mixed.draw(update, 60) for update in updates]

    one = draws(1)
    torch.manual_seed(99)
    assert draws(1) == one
    assert draws(2) != one
    # A run that is taken up again in the middle goes on as it would have.
    assert draws(1, range(30, 60)) == one[30:]
    assert len({tuple(pair) for pair in one}) == 4


def test_the_same_seed_gives_the_same_result(tiny_model: MakeModel) -> None:
    results = []
    for seed in (1, 1, 2):
        model, originals, new = replaced(tiny_model("gpt2", dropout=0.1), 1)
        with StochasticBlocks(model, originals, first=0.3, curriculum=1.0, seed=seed) as mixed:
            fine_tune(
                model, random_sequences(16), SETTINGS, seed=3, compact=new, on_update=mixed.draw
            )
        results.append(state(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize(("first", "curriculum"), [(0.5, 0.6), (0.0, 1.0), (0.2, 0.0), (1.0, 0.5)])
def test_the_share_of_compact_blocks_follows_the_curriculum(
    first: float, curriculum: float, tiny_model: MakeModel
) -> None:
    model, originals, _ = replaced(tiny_model("gpt2"), 0, 2)
    mixed = StochasticBlocks(model, originals, first=first, curriculum=curriculum, seed=1)
    total = 2000
    draws = torch.tensor([mixed.draw(update, total) for update in range(total)]).double()
    rising = round(curriculum * total)
    # Halfway up the chance is halfway to 1: so is the mean of the rise, and of each half of it.
    for start, end in ((0.0, 0.5), (0.5, 1.0)):
        part = draws[round(start * rising) : round(end * rising)]
        if len(part):
            wanted = first + (1 - first) * (start + end) / 2
            assert part.mean().item() == pytest.approx(wanted, abs=0.05)
            assert part.mean(0).tolist() == pytest.approx([wanted] * 2, abs=0.07)
    assert draws[rising:].all()
    if rising:
        assert mixed.probability(0, total) == first
        assert mixed.probability(rising // 2, total) == pytest.approx((1 + first) / 2)


def test_flops_are_those_of_the_blocks_that_ran(tiny_model: MakeModel) -> None:
    model, originals, _ = replaced(tiny_model("gpt2"), 1)
    draws: list[bool] = []
    with StochasticBlocks(model, originals, first=0.2, curriculum=1.0, seed=2) as mixed:

        def on_update(update: int, total: int) -> tuple[bool, ...]:
            draws.extend(mixed.draw(update, total))
            return tuple(draws[-1:])

        rows = fine_tune(model, random_sequences(20), SETTINGS, seed=1, on_update=on_update)
    measured = [
        row["flops"] - before
        for row, before in zip(rows, [0, *(row["flops"] for row in rows)], strict=False)
    ]
    assert len(set(draws)) == 2
    costs = dict(zip(draws, measured, strict=True))
    assert measured == [costs[drawn] for drawn in draws]
    assert costs[True] != costs[False]


def test_an_original_of_another_type_is_copied(tiny_model: MakeModel) -> None:
    teacher = tiny_model("gpt2")
    model, originals, _ = replaced(teacher, 1)
    originals[1].to(torch.bfloat16)
    with StochasticBlocks(model, originals, first=0.0, curriculum=1.0, seed=1) as mixed:
        mixed.draw(0, 10)
        torch.testing.assert_close(logits(model), logits(teacher), rtol=0.1, atol=0.5)
    assert {p.dtype for p in originals[1].parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("wrong", [{"first": 1.5}, {"first": -0.1}, {"curriculum": 2.0}])
def test_shares_lie_between_nothing_and_all(wrong: dict[str, float], tiny_model: MakeModel) -> None:
    shares = {"first": 0.5, "curriculum": 0.5} | wrong
    with pytest.raises(UserError, match="give a share from 0 to 1"):
        StochasticBlocks(tiny_model("gpt2"), {}, **shares, seed=1)


def test_an_index_without_a_block_is_a_bug(tiny_model: MakeModel) -> None:
    with pytest.raises(IndexError):
        StochasticBlocks(
            tiny_model("gpt2"), {3: nn.Linear(2, 2)}, first=0.5, curriculum=0.5, seed=1
        )
