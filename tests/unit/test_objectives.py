"""The losses: next token, and what a teacher adds: its logits and its blocks' outputs."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import family_of
from iskd.settings import ObjectiveSettings
from iskd.training import chunked, objectives
from iskd.training.objectives import Mixture, next_token_loss
from tests.unit.conftest import VOCABULARY, MakeModel

FAMILIES = ["gpt2", "phi", "llama", "gpt_neox"]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"input_ids": torch.randint(1, VOCABULARY, (3, 11), generator=generator)}


@pytest.fixture(params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tiny_model: MakeModel
) -> tuple[PreTrainedModel, PreTrainedModel]:
    return tiny_model(request.param, seed=1), tiny_model(request.param, seed=2)


Pair = tuple[PreTrainedModel, PreTrainedModel]
Batch = dict[str, torch.Tensor]


def spec(
    next_token: float = 0.0, kl: float = 0.0, temperature: float = 1.0, hidden: float = 0.0
) -> ObjectiveSettings:
    return ObjectiveSettings(next_token, kl, hidden, temperature)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def block_outputs(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """What comes out of each block; the hooks are set one block at a time."""
    found = []
    for block in family_of(model.config).blocks(model):
        store: list[Any] = []
        handle = block.register_forward_hook(
            lambda module, args, output, store=store: store.append(output)
        )
        model(input_ids=ids, use_cache=False)
        handle.remove()
        found.append(store[0])
    return found


def test_next_token_loss_is_the_librarys_own(pair: Pair, batch: Batch) -> None:
    student, _ = pair
    wanted = student(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    torch.testing.assert_close(next_token_loss(student, batch), wanted)


def test_narrow_integers_are_taken_as_tokens(pair: Pair, batch: Batch) -> None:
    narrow = {"input_ids": batch["input_ids"].int()}
    assert torch.equal(next_token_loss(pair[0], narrow), next_token_loss(pair[0], batch))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_weight_zero_is_the_next_token_loss(pair: Pair, batch: Batch, temperature: float) -> None:
    student, teacher = pair
    loss = Mixture(spec(next_token=1.0, temperature=temperature), teacher)(student, batch)
    assert torch.equal(loss, next_token_loss(student, batch))
    assert torch.equal(Mixture(spec(next_token=1.0))(student, batch), loss)


def test_a_term_of_weight_zero_costs_nothing(
    pair: Pair, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = pair

    def never(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("computed although its weight is 0")

    handle = teacher.base_model.register_forward_pre_hook(never)
    Mixture(spec(next_token=1.0), teacher)(student, batch)
    with pytest.raises(AssertionError, match="weight is 0"):
        Mixture(spec(kl=1.0), teacher)(student, batch)
    handle.remove()
    handle = teacher.get_output_embeddings().register_forward_pre_hook(never)
    Mixture(spec(hidden=1.0), teacher)(student, batch)
    handle.remove()
    with monkeypatch.context() as patch:
        patch.setattr("iskd.training.objectives._divergence", never)
        Mixture(spec(next_token=1.0, hidden=1.0), teacher)(student, batch)
    with monkeypatch.context() as patch:
        patch.setattr("iskd.training.objectives._gap", never)
        Mixture(spec(next_token=1.0, kl=1.0), teacher)(student, batch)


def test_a_teacher_has_no_divergence_from_itself(pair: Pair, batch: Batch) -> None:
    student, _ = pair
    objective = Mixture(spec(kl=1.0, temperature=2.0), copy.deepcopy(student))
    assert abs(objective(student, batch).item()) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_forward_and_a_mean_over_positions(
    pair: Pair, batch: Batch, temperature: float
) -> None:
    student, teacher = pair
    ids = batch["input_ids"]
    with torch.no_grad():
        p, q = (
            functional.softmax(m(ids).logits[:, :-1] / temperature, -1) for m in (teacher, student)
        )
    divergence = (p * (p.log() - q.log())).sum(-1).mean()
    mixed = 0.75 * next_token_loss(student, batch) + 0.25 * temperature**2 * divergence
    loss = Mixture(spec(next_token=0.75, kl=0.25, temperature=temperature), teacher)(student, batch)
    torch.testing.assert_close(loss, mixed)
    # The direction matters: the reverse is another number, by much more than what was let pass.
    assert not torch.isclose((q * (q.log() - p.log())).sum(-1).mean(), divergence, rtol=1e-3)


def test_a_high_temperature_compares_centred_logits(pair: Pair, batch: Batch) -> None:
    """As T grows, T^2 KL tends to the variance of the logits' difference over twice the entries."""
    student, teacher = (model.double() for model in pair)
    ids = batch["input_ids"]
    with torch.no_grad():
        gap = (teacher(ids).logits - student(ids).logits)[:, :-1]
    limit = gap.var(-1, unbiased=False).mean() / 2
    # The objective computes in float32, where T^2 amplifies rounding: so a moderate T.
    loss = Mixture(spec(kl=1.0, temperature=100.0), teacher)(student, batch)
    assert loss.item() == pytest.approx(limit.item(), rel=0.05)


@pytest.mark.parametrize("weights", [{"kl": 1.0, "temperature": 1.5}, {"hidden": 1.0}])
def test_gradient_reaches_the_student_and_never_the_teacher(
    weights: dict[str, float], pair: Pair, batch: Batch
) -> None:
    student, teacher = pair
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = Mixture(spec(**weights), teacher.train())
    student.train()
    objective(student, batch).backward()
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    blocks = family_of(student.config).blocks(student)
    reached = student.parameters() if "kl" in weights else blocks.parameters()
    assert all(p.grad is not None and p.grad.any() for p in reached)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_gradient_is_that_of_the_softened_cross_entropy(
    weight: float, pair: Pair, batch: Batch
) -> None:
    student, teacher = pair
    ids = batch["input_ids"]
    found = gradients(student, Mixture(spec(kl=weight, temperature=2.0), teacher)(student, batch))
    with torch.no_grad():
        target = functional.softmax(teacher(ids).logits[:, :-1] / 2, -1)
    own = functional.log_softmax(student(ids).logits[:, :-1] / 2, -1)
    wanted = gradients(student, -4 * weight * (target * own).sum(-1).mean())
    torch.testing.assert_close(found, wanted)


def test_terms_add_up(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    parts = [
        Mixture(one, teacher)(student, batch).item()
        for one in (spec(next_token=1.0), spec(kl=1.0, temperature=2.0), spec(hidden=1.0))
    ]
    whole = Mixture(spec(next_token=0.5, kl=2.0, temperature=2.0, hidden=3.0), teacher)
    wanted = 0.5 * parts[0] + 2 * parts[1] + 3 * parts[2]
    assert whole(student, batch).item() == pytest.approx(wanted, rel=1e-5)
    assert min(parts) > 0.1


def test_hidden_match_is_the_mean_of_each_blocks_relative_error(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    with torch.no_grad():
        wanted = [
            ((own - other) ** 2).mean() / (other**2).mean()
            for own, other in zip(
                block_outputs(student, batch["input_ids"]),
                block_outputs(teacher, batch["input_ids"]),
                strict=True,
            )
        ]
    assert len(wanted) == 3
    loss = Mixture(spec(hidden=1.0), teacher)(student, batch)
    torch.testing.assert_close(loss, torch.stack(wanted).mean())


def test_hidden_match_is_zero_for_the_teacher_itself(pair: Pair, batch: Batch) -> None:
    student, _ = pair
    assert Mixture(spec(hidden=1.0), copy.deepcopy(student))(student, batch).item() == 0.0
    assert Mixture(spec(hidden=1.0), student)(student, batch).item() == 0.0


def test_hooks_do_not_stay(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    Mixture(spec(kl=1.0, hidden=1.0), teacher)(student, batch)
    assert not any(m._forward_hooks for model in pair for m in model.modules())


def test_a_block_may_give_a_tuple(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    objective = Mixture(spec(hidden=1.0), teacher)
    wanted = objective(student, batch)
    last = family_of(teacher.config).blocks(teacher)[-1]
    forward = last.forward
    # Its model would not take the tuple, so that is opened again once the objective has seen it.
    last.__dict__["forward"] = lambda *args, **kwargs: (forward(*args, **kwargs), None)
    norm = next(
        module
        for name, module in teacher.base_model.named_children()
        if name in ("ln_f", "final_layernorm", "norm", "final_layer_norm")
    )
    norm.register_forward_pre_hook(lambda module, args: (args[0][0],))
    dropout = getattr(teacher.base_model, "embed_dropout", None)
    assert dropout is None or dropout.p == 0
    assert torch.equal(objective(student, batch), wanted)


@pytest.mark.parametrize("weights", [{"kl": 1.0}, {"hidden": 1.0}, {"kl": 1.0, "hidden": 1.0}])
def test_a_teacher_may_be_in_bfloat16(weights: dict[str, float], pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    exact = Mixture(spec(**weights), copy.deepcopy(teacher))(student, batch)
    coarse = teacher.to(torch.bfloat16)
    loss = Mixture(spec(**weights), coarse)(student, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert loss.item() != exact.item()
    assert {p.dtype for p in coarse.parameters()} == {torch.bfloat16}
    assert {p.grad.dtype for p in student.parameters() if p.grad is not None} == {torch.float32}


def test_autocast_leaves_the_teacher_in_its_own_precision(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    seen = []
    teacher.get_output_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(output.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        Mixture(spec(next_token=1.0, kl=1.0), teacher)(student, batch).backward()
    assert seen == [torch.float32]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("weights", [{"kl": 1.0}, {"next_token": 0.5, "kl": 0.5, "hidden": 1.0}])
def test_the_next_token_loss_is_told_whatever_is_trained(
    weights: dict[str, float],
    large: bool,
    pair: Pair,
    batch: Batch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student, teacher = pair
    wanted = next_token_loss(student, batch)
    if large:
        monkeypatch.setattr("iskd.training.objectives.LARGE_VOCABULARY", 2)
    objective = Mixture(spec(**weights), teacher)
    found = gradients(student, objective(student, batch))
    assert objective.next_token is not None
    assert not objective.next_token.requires_grad
    torch.testing.assert_close(objective.next_token, wanted.detach())
    # Being told changes no bit of what is learnt.
    monkeypatch.setattr("iskd.training.objectives._told_cross_entropy", lambda *_: None)
    objective._pure = True
    untold = gradients(student, objective(student, batch))
    assert objective.next_token is None
    assert all(torch.equal(found[name], gradient) for name, gradient in untold.items())


def test_where_the_next_token_loss_is_trained_it_is_not_told_twice(
    pair: Pair, batch: Batch
) -> None:
    objective = Mixture(spec(next_token=1.0), pair[1])
    objective(pair[0], batch)
    assert objective.next_token is None


def test_one_tensor_of_the_logits_size_is_kept_for_the_divergence(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    kept: list[int] = []
    logits = student(input_ids=batch["input_ids"], use_cache=False).logits
    size = logits.numel()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    class Answer:
        config = student.config

        def __call__(self, **_: Any) -> Any:
            return type("Output", (), {"logits": logits})

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Mixture(spec(kl=1.0, temperature=2.0), teacher)(Answer(), batch)
    assert [n for n in kept if n > size / 2] == [size]


def test_the_backward_pass_may_be_repeated(pair: Pair, batch: Batch) -> None:
    student, teacher = pair
    loss = 3 * Mixture(spec(kl=1.0), teacher)(student, batch)
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in student.named_parameters()}
    loss.backward()
    torch.testing.assert_close({name: p.grad / 2 for name, p in student.named_parameters()}, once)


def test_a_teacher_with_dropout_answers_the_same_each_time(
    tiny_model: MakeModel, batch: Batch
) -> None:
    teacher, student = tiny_model("gpt2", dropout=0.3), tiny_model("gpt2", seed=5)
    objective = Mixture(spec(kl=1.0), teacher.train())
    assert torch.equal(objective(student, batch), objective(student, batch))


@pytest.mark.parametrize("mask", [False, True])
def test_only_if_configured_the_student_gets_a_mask_of_ones(
    mask: bool, pair: Pair, batch: Batch
) -> None:
    student, teacher = pair
    seen: dict[str, Any] = {}
    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen.__setitem__(
                name, kwargs.get("attention_mask")
            ),
            with_kwargs=True,
        )
    loss = Mixture(spec(next_token=1.0, kl=1.0), teacher, mask=mask)(student, batch)
    assert seen["teacher"] is None
    if mask:
        assert torch.equal(seen["student"], torch.ones_like(batch["input_ids"]))
    else:
        assert seen["student"] is None
    torch.testing.assert_close(loss, Mixture(spec(next_token=1.0, kl=1.0), teacher)(student, batch))


@pytest.mark.parametrize("other", [{"blocks": 2}, {"width": 16}])
def test_hidden_match_needs_equal_shapes(
    other: dict[str, int], tiny_model: MakeModel, batch: Batch
) -> None:
    student, teacher = tiny_model("gpt2", **other), tiny_model("gpt2")
    Mixture(spec(kl=1.0), teacher)(student, batch)
    with pytest.raises(UserError, match=r"term hidden .* 3 blocks of width 32; set hidden to 0"):
        Mixture(spec(kl=1.0, hidden=0.1), teacher)(student, batch)


def test_the_divergence_needs_equal_vocabularies(tiny_model: MakeModel, batch: Batch) -> None:
    student, teacher = tiny_model("gpt2"), tiny_model("gpt2")
    student.resize_token_embeddings(VOCABULARY + 3)
    with pytest.raises(UserError, match=r"has 64 entries, the teacher's 61"):
        Mixture(spec(kl=1.0), teacher)(student, batch)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (spec(kl=-0.1), "kl is -0.1: give a number, 0 or more"),
        (spec(next_token=float("nan")), "next_token is nan"),
        (spec(next_token=1.0, temperature=0.0), "temperature is 0.0: give a number, above 0"),
        (spec(hidden=float("inf")), "hidden is inf"),
        (spec(), "all weights of the objective are 0"),
    ],
)
def test_a_mixture_that_makes_no_loss_is_refused(
    wrong: ObjectiveSettings, message: str, tiny_model: MakeModel
) -> None:
    with pytest.raises(UserError, match=message):
        Mixture(wrong, tiny_model("gpt2"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "terms",
    [
        spec(next_token=1.0),
        spec(next_token=0.5, kl=0.5, temperature=2.0),
        spec(kl=1.0),
        spec(next_token=0.3, kl=0.7, hidden=0.5),
    ],
)
def test_a_large_vocabulary_gives_the_same_loss_without_logits(
    family: str, terms: ObjectiveSettings, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = (tiny_model(family, seed=seed).double() for seed in (1, 2))
    ids = torch.randint(1, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    mixture = Mixture(terms, teacher)
    loss = mixture(student, {"input_ids": ids})
    wanted = gradients(student, loss)
    monkeypatch.setattr(objectives, "LARGE_VOCABULARY", 2)
    monkeypatch.setattr(chunked, "ROWS_ON_CPU", 5)
    head = student.get_output_embeddings()
    handle = head.register_forward_hook(lambda *_: pytest.fail("the logits were worked out"))
    again = mixture(student, {"input_ids": ids})
    handle.remove()
    # The plain form rounds to float32 on its way; test_chunked.py compares in float64.
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    found = gradients(student, again)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert mixture(student, {"input_ids": ids}).item() == pytest.approx(loss.item(), rel=1e-6)


def test_other_vocabularies_are_refused_in_chunks_too(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "LARGE_VOCABULARY", 2)
    teacher = tiny_model("gpt2")
    teacher.resize_token_embeddings(VOCABULARY + 1)
    with pytest.raises(UserError, match="needs the same tokenizer for both"):
        Mixture(spec(kl=1.0), teacher)(tiny_model("gpt2"), {"input_ids": torch.ones(1, 4).long()})


@pytest.mark.parametrize("weights", [{"kl": 0.5}, {"hidden": 0.5}])
def test_a_term_of_the_teacher_needs_one(weights: dict[str, float]) -> None:
    with pytest.raises(UserError, match="set both to 0 or name a teacher"):
        Mixture(spec(next_token=1.0, **weights))
