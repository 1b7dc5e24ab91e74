"""Chunked losses: those of the plain form, and their gradients, at any number of rows."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from iskd.training import chunked, row_losses
from iskd.training.chunked import TeacherHead, chunked_loss
from iskd.training.row_losses import TeacherDraws, Terms

VOCABULARY, WIDTH, THEIRS = 37, 8, 6


def plain(
    hidden: torch.Tensor,
    projection: nn.Linear,
    labels: torch.Tensor,
    terms: Terms,
    teacher: TeacherHead,
) -> torch.Tensor:
    """The loss as a textbook writes it."""
    logits, heat = projection(hidden), terms.temperature
    own = functional.log_softmax(logits / heat, dim=-1)
    wanted = functional.log_softmax(teacher.projection(teacher.hidden) / heat, dim=-1)
    divergence = functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return (
        terms.next_token * functional.cross_entropy(logits, labels)
        + terms.kl * heat**2 * divergence
    )


def case(rows: int, *, bias: bool, seed: int = 1) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    projection = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=torch.float64)
    theirs = nn.Linear(THEIRS, VOCABULARY, dtype=torch.float64)
    with torch.no_grad():
        for parameter in (*projection.parameters(), *theirs.parameters()):
            parameter.copy_(drawn(*parameter.shape))
    labels = torch.randint(VOCABULARY, (rows,), generator=generator)
    hidden = drawn(rows, WIDTH).requires_grad_()
    return (
        hidden,
        projection,
        labels,
        TeacherHead(drawn(rows, THEIRS), theirs.requires_grad_(False)),
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    size=st.integers(1, 8),
    piece=st.integers(0, 3),
    bias=st.booleans(),
    terms=st.builds(
        Terms,
        next_token=st.sampled_from([0.0, 0.5, 1.0]),
        kl=st.sampled_from([0.0, 0.5, 2.0]),
        temperature=st.sampled_from([0.5, 1.0, 4.0]),
    ),
)
def test_loss_and_gradients_are_those_of_the_plain_form(
    rows: int, size: int, piece: int, bias: bool, terms: Terms
) -> None:
    hidden, projection, labels, teacher = case(rows, bias=bias)
    whole = chunked.ROWS_ON_CPU, chunked.PIECE
    chunked.ROWS_ON_CPU, chunked.PIECE = size, piece * VOCABULARY
    try:
        loss = chunked_loss(hidden, projection, labels, terms, teacher)
    finally:
        chunked.ROWS_ON_CPU, chunked.PIECE = whole
    wanted = plain(hidden, projection, labels, terms, teacher)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10, abs=1e-12)
    inputs = (hidden, *projection.parameters())
    found = torch.autograd.grad(3 * loss, inputs)
    for one, other in zip(found, torch.autograd.grad(3 * wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    size=st.integers(1, 8),
    draws=st.integers(1, 9),
    bias=st.booleans(),
    terms=st.builds(
        Terms,
        next_token=st.sampled_from([0.0, 0.5, 1.0]),
        kl=st.sampled_from([0.5, 2.0]),
        temperature=st.sampled_from([0.5, 1.0, 4.0]),
    ),
)
def test_losses_from_draws_and_their_gradients_are_those_of_the_plain_form(
    rows: int, size: int, draws: int, bias: bool, terms: Terms
) -> None:
    hidden, projection, labels, _ = case(rows, bias=bias)
    generator = torch.Generator().manual_seed(2)
    # Of few tokens, so that some are drawn more than once, and labels among them.
    tokens = torch.randint(5, (rows, draws), generator=generator)
    labels %= 5
    log_share = torch.randn(rows, generator=generator, dtype=torch.float64)
    whole = chunked.ROWS_ON_CPU, chunked.PIECE
    chunked.ROWS_ON_CPU, chunked.PIECE = size, size // 2 * VOCABULARY
    try:
        drawn = TeacherDraws(tokens, log_share)
        loss = chunked_loss(hidden, projection, labels, terms, drawn)
        with torch.no_grad():
            alone = chunked_loss(hidden, projection, labels, terms, drawn)
    finally:
        chunked.ROWS_ON_CPU, chunked.PIECE = whole
    logits, heat = projection(hidden), terms.temperature
    logs = functional.log_softmax(logits / heat, dim=-1).gather(1, tokens).mean(1)
    wanted = terms.next_token * functional.cross_entropy(logits, labels)
    wanted = wanted + terms.kl * heat**2 * (log_share - logs).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-10, abs=1e-12)
    assert alone.item() == loss.item()
    inputs = (hidden, *projection.parameters())
    found = torch.autograd.grad(3 * loss, inputs)
    for one, other in zip(found, torch.autograd.grad(3 * wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_loss_without_kl_needs_no_teacher() -> None:
    hidden, projection, labels, _ = case(5, bias=False)
    loss = chunked_loss(hidden, projection, labels, Terms(1.0, 0.0, 1.0))
    assert loss.item() == pytest.approx(
        functional.cross_entropy(projection(hidden), labels).item(), rel=1e-12
    )


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    hidden, projection, labels, teacher = case(5, bias=True)
    loss = chunked_loss(hidden, projection, labels, Terms(0.5, 0.5, 1.0), teacher)
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_under_autocast_products_are_coarse_and_sums_exact() -> None:
    hidden, projection, labels, teacher = case(300, bias=True)
    terms = Terms(0.5, 0.5, 2.0)
    exact = plain(hidden, projection, labels, terms, teacher)
    mine, head, theirs = hidden.detach().float().requires_grad_(), projection.float(), teacher
    coarse = TeacherHead(theirs.hidden.float(), theirs.projection.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = chunked_loss(mine, head, labels, terms, coarse)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert mine.grad is not None
    assert head.weight.grad is not None
    assert {mine.grad.dtype, head.weight.grad.dtype} == {torch.float32}
    assert mine.grad.isfinite().all()


def test_no_tensor_has_all_rows_and_the_whole_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "ROWS_ON_CPU", 4)
    hidden, projection, labels, teacher = case(40, bias=False)
    sizes: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        chunked_loss(hidden, projection, labels, Terms(0.5, 0.5, 1.0), teacher).backward()
    assert max(sizes) < 40 * VOCABULARY


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    multiple=st.sampled_from([2, 8, 37, 64]),
    bias=st.booleans(),
    kl=st.sampled_from([0.0, 0.5]),
)
def test_a_padded_vocabulary_changes_neither_loss_nor_gradients(
    rows: int, multiple: int, bias: bool, kl: float
) -> None:
    hidden, projection, labels, teacher = case(rows, bias=bias)
    inputs, terms = (hidden, *projection.parameters()), Terms(0.5, kl, 2.0)
    given = [
        chunked_loss(hidden, projection, labels, terms, teacher, multiple=size)
        for size in (1, multiple)
    ]
    assert given[1].item() == pytest.approx(given[0].item(), rel=1e-14)
    plain_, padded = (torch.autograd.grad(3 * loss, inputs) for loss in given)
    for one, other, parameter in zip(plain_, padded, inputs, strict=True):
        assert other.shape == parameter.shape
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-15)


def test_a_padded_vocabulary_changes_nothing_where_half_of_the_bits_are_computed_in() -> None:
    found = []
    for multiple in (1, 64):
        hidden, projection, labels, teacher = case(300, bias=True)
        mine, head = hidden.detach().float().requires_grad_(), projection.float()
        coarse = TeacherHead(teacher.hidden.bfloat16(), teacher.projection.bfloat16())
        assert (coarse.padded(multiple) is coarse) == (multiple == 1)
        assert len(coarse.padded(64).logits(slice(2))[0]) == 64
        with torch.autocast("cpu", torch.bfloat16):
            loss = chunked_loss(mine, head, labels, Terms(0.5, 0.5, 2.0), coarse, multiple=multiple)
        loss.backward()
        found.append((loss.detach(), mine.grad, head.weight.grad, head.bias.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_on_a_processor_no_vocabulary_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(weight: torch.Tensor, multiple: int) -> torch.Tensor:
        asked.append(multiple)
        return weight

    monkeypatch.setattr(chunked, "_padded", noted)
    hidden, projection, labels, teacher = case(3, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        chunked_loss(hidden, projection, labels, Terms(1.0, 0.0, 1.0), teacher)
    assert set(asked) == {1}


def test_a_gpus_way_to_the_labels_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(VOCABULARY, (50,), generator=generator)
    start = torch.randn(50, VOCABULARY, generator=generator)
    found = []
    for scatter in (True, False):
        gradient = start.clone()
        row_losses._take_off(gradient, labels, 0.3, scatter=scatter)
        found.append(gradient)
    assert torch.equal(*found)
    assert int((found[0] != start).sum()) == 50
