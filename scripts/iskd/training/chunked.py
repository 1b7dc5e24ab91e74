"""Losses over a large vocabulary, from hidden states in chunks: the logits never exist as a whole.

At a vocabulary of 50,000 the logits of one batch, their float32 copies and their gradients are
most of a training step's memory and a good part of its time. Here a chunk of rows at a time goes
through the output projection, gives its part of the loss and of the gradients, and is let go. The
gradients are worked out in the forward pass, as the softmax's is known by then; nothing is
computed twice. The idea is that of the fused linear cross-entropies (Cut Your Losses, arXiv
2411.09009; Liger Kernel, arXiv 2410.10989), in plain torch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from iskd.training.compiling import Fusable

ROWS = 256
"""Rows, of one position each, that go through the output projection at once."""

ALIGNED = 64
"""What a GPU's half-precision products like a vocabulary to be a multiple of.

A row of 50,257 numbers of 16 bits begins anywhere, and is read one number at a time; one of 50,304
is read 16 bytes at a time (NVIDIA, Deep Learning Performance, "Tensor Core Requirements").
"""

LARGE_VOCABULARY = 16_384
"""From this size on losses are worked out in chunks. Below it the plain form is as good."""


@dataclass(frozen=True)
class Terms:
    """Weights of next-token cross-entropy and of KL, and the temperature of the latter."""

    next_token: float
    kl: float
    temperature: float


@dataclass(frozen=True)
class TeacherHead:
    """What a teacher's distribution is worked out from, chunk by chunk.

    Attributes:
        hidden: its last hidden states, (rows, its hidden size).
        projection: its output projection.
    """

    hidden: torch.Tensor
    projection: nn.Module

    def logits(self, rows: slice) -> torch.Tensor:
        """Give the logits of some rows, in the teacher's own data type."""
        part = self.hidden[rows]
        with torch.autocast(part.device.type, enabled=False):
            given: torch.Tensor = self.projection(part)
        return given

    def padded(self, multiple: int) -> "TeacherHead":
        """Give the same with logits of 0 behind the vocabulary, up to a multiple, if in 16 bits."""
        own = self.projection
        if (
            not isinstance(own, nn.Linear)
            or own.weight.itemsize != 2
            or len(own.weight) % multiple == 0
        ):
            return self
        wide = nn.Linear(own.in_features, own.out_features, own.bias is not None, device="meta")
        for name, given in own.named_parameters():
            entries = nn.Parameter(_padded(given, multiple), requires_grad=False)
            wide.register_parameter(name, entries)
        return TeacherHead(self.hidden, wide)


@dataclass(frozen=True)
class TeacherDraws:
    """What stands for a teacher's distribution: tokens drawn from it, with replacement.

    With p what they are drawn from and q the student's, both at the temperature T of the loss,
    T^2 mean(log p(token) - log q(token)) has T^2 KL(p || q) as its expectation, and its gradient
    that one's (random sampling KD, arXiv 2503.16870). The most likely tokens alone have neither.

    Attributes:
        tokens: int64 (rows, draws).
        log_share: mean of log p(token) over the draws, in nats, float32 (rows,). It does nothing
            to the gradient. The entropy of p could stand in its place, with ten times the noise.
    """

    tokens: torch.Tensor
    log_share: torch.Tensor


Target = TeacherHead | TeacherDraws
"""What KL compares with."""


def chunked_loss(
    hidden: torch.Tensor,
    projection: nn.Module,
    labels: torch.Tensor,
    terms: Terms,
    teacher: Target | None = None,
    *,
    multiple: int | None = None,
    next_token: torch.Tensor | None = None,
) -> torch.Tensor:
    """Give next_token * CE + kl * T^2 * KL(teacher_T || student_T), both means over rows, in nats.

    Args:
        hidden: the model's last hidden states, (rows, hidden size).
        projection: the output projection, a linear layer; its bias may be missing.
        labels: the token that each row is to predict, int64 (rows).
        terms: the weights; with ``kl``, ``teacher`` is needed.
        teacher: of the same rows.
        multiple: pad the vocabulary to a multiple of this, in here alone: with rows of zeros that
            no sum includes, so that loss and gradients stay what they are. Left out, ``ALIGNED``
            where a GPU computes in 16 bits, and else no padding.
        next_token: a scalar that CE is added to, whatever its weight, without a gradient.

    Returns:
        a scalar, float32 (or as the hidden states, if these are more precise)
    """
    if multiple is None:
        multiple = _alignment(projection.get_parameter("weight"))
    how = (torch.is_grad_enabled(), multiple)
    loss: torch.Tensor = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden, projection.weight, projection.bias, labels, terms, teacher, *how, next_token
    )
    return loss


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - the library hands them over by position
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        terms: Terms,
        teacher: Target | None,
        learning: bool,
        multiple: int,
        told: torch.Tensor | None,
    ) -> torch.Tensor:
        exact = hidden.dtype if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), device=hidden.device, dtype=exact)
        count = len(hidden)
        of_hidden = torch.empty_like(hidden)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=exact)
        if not learning and multiple == 1:
            # Autocast converts, and keeps what it has converted for the next batch.
            used, offset = weight, bias
        else:
            # One conversion for all chunks where autocast computes in another type.
            used = _padded(weight.to(_computed_in(weight)), multiple)
            offset = None if bias is None else _padded(bias.to(used.dtype), multiple)
        of_weight = torch.zeros_like(used if learning else used[:0], dtype=exact)
        if isinstance(teacher, TeacherHead):
            teacher = teacher.padded(multiple)
        # From draws both terms are worked out in one.
        apart = terms.next_token > 0 and not isinstance(teacher, TeacherDraws)
        for start in range(0, count, ROWS):
            rows = slice(start, start + ROWS)
            part = hidden[rows].to(used.dtype)
            logits = functional.linear(part, used, offset)[:, : len(weight)].to(exact)
            if told is not None and not apart:
                chosen = logits.gather(1, labels[rows, None])[:, 0]
                told += (logits.logsumexp(-1) - chosen).sum() / count
            # Of what pads the vocabulary the gradient stays 0.
            width = len(used) if learning else 0
            room = torch.zeros(len(part), width, dtype=exact, device=hidden.device)
            gradient = room[:, : len(weight)] if learning else None
            if isinstance(teacher, TeacherDraws):
                drawn = TeacherDraws(teacher.tokens[rows], teacher.log_share[rows])
                total += _from_draws(
                    logits, labels[rows], drawn, terms, gradient=gradient, count=count
                )
            elif apart:
                entropy = _cross_entropy(logits, labels[rows], gradient, terms.next_token / count)
                total += entropy
                if told is not None:
                    told += entropy / terms.next_token
            if terms.kl and isinstance(teacher, TeacherHead):
                target = teacher.logits(rows)[:, : len(weight)].to(exact)
                total += _divergence(logits, target, gradient, terms, count)
            if gradient is None:
                continue
            coarse = room.to(used.dtype)
            of_hidden[rows] = coarse @ used
            # In place, torch's counter of FLOPs would not see it.
            of_weight += coarse.T @ part
            if of_bias is not None:
                of_bias += gradient.sum(0)
        ctx.save_for_backward(of_hidden, of_weight[: len(weight)], of_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_hidden, of_weight, of_bias = ctx.saved_tensors
        scaled = [
            None if one is None else one * grad_output.to(one.dtype)
            for one in (of_hidden, of_weight, of_bias)
        ]
        return (*scaled, None, None, None, None, None, None)


def _alignment(weight: torch.Tensor) -> int:
    """Give the multiple that a vocabulary is padded to, where nobody says."""
    half = _computed_in(weight).itemsize == 2
    return ALIGNED if half and weight.device.type == "cuda" else 1


def _padded(weight: torch.Tensor, multiple: int) -> torch.Tensor:
    """Add entries of zeros to a weight or a bias, up to a multiple; as it is where it is one."""
    missing = -len(weight) % multiple
    return torch.cat([weight, weight.new_zeros(missing, *weight.shape[1:])]) if missing else weight


def _computed_in(weight: torch.Tensor) -> torch.dtype:
    """Give the type that a matrix product with a weight is computed in, autocast considered."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


@Fusable
def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, gradient: torch.Tensor | None, weight: float
) -> torch.Tensor:
    """Give a chunk's weighted sum of -log p(label), and add its gradient to ``gradient``."""
    logs = functional.log_softmax(logits, dim=-1)
    chosen = logs.gather(1, labels[:, None])
    if gradient is not None:
        gradient += logs.exp_().mul_(weight)
        _take_off(gradient, labels, weight, scatter=gradient.device.type != "cuda")
    return -weight * chosen.sum()


def _take_off(
    gradient: torch.Tensor, labels: torch.Tensor, weight: float, *, scatter: bool
) -> None:
    """Take a weight off each row's entry at its label, in place.

    With algorithms of a fixed order, a GPU's scatter sends its strides to the device first, and
    waits for it, chunk by chunk; a comparison does not, and is compiled into the pass before.
    """
    if scatter:
        column = labels[:, None]
        gradient.scatter_add_(1, column, torch.full_like(column, -weight, dtype=gradient.dtype))
    else:
        entries = torch.arange(gradient.shape[1], device=gradient.device)
        gradient -= (entries == labels[:, None]) * weight


@Fusable
def _divergence(
    logits: torch.Tensor,
    target: torch.Tensor,
    gradient: torch.Tensor | None,
    terms: Terms,
    count: int,
) -> torch.Tensor:
    """Give a chunk's weighted sum of T^2 KL, and add its gradient to ``gradient``."""
    heat, weight = terms.temperature, terms.kl / count
    own = functional.log_softmax(logits / heat, dim=-1)
    wanted = functional.log_softmax(target / heat, dim=-1)
    value = functional.kl_div(own, wanted, reduction="sum", log_target=True)
    if gradient is not None:
        # d T^2 KL / d logits = T (own - wanted).
        gradient += own.exp_().sub_(wanted.exp_()).mul_(weight * heat)
    return weight * heat**2 * value


def _from_draws(
    logits: torch.Tensor,
    labels: torch.Tensor,
    drawn: TeacherDraws,
    terms: Terms,
    *,
    gradient: torch.Tensor | None,
    count: int,
) -> torch.Tensor:
    """Give a chunk's weighted sum of both terms, and add its gradient to ``gradient``.

    The label and the draws are tokens whose probability shall rise, each by its weight. At
    temperature 1 both terms have the same softmax, which is most of the work, so it is made once.
    """
    heat, weight = terms.temperature, terms.kl / count
    drawn_ones = (drawn.tokens, weight / drawn.tokens.shape[1])
    label = (labels[:, None], terms.next_token / count)
    total = weight * heat**2 * drawn.log_share.to(logits.dtype).sum()
    if not terms.next_token:
        return total + _rising(logits, [drawn_ones], gradient, heat)
    if heat == 1:
        return total + _rising(logits, [drawn_ones, label], gradient)
    total = total + _rising(logits, [label], gradient)
    return total + _rising(logits, [drawn_ones], gradient, heat)


def _rising(
    logits: torch.Tensor,
    sought: list[tuple[torch.Tensor, float]],
    gradient: torch.Tensor | None,
    heat: float = 1.0,
) -> torch.Tensor:
    """Give T^2 times the weighted sum of -log p_T(token), and add its gradient to ``gradient``.

    Args:
        logits: of a chunk, (rows, vocabulary).
        sought: tokens, int64 (rows, any number), and what each of them weighs.
        gradient: where it is wanted.
        heat: the temperature T.
    """
    logs = functional.log_softmax(logits if heat == 1 else logits / heat, dim=-1)
    total = torch.zeros((), device=logits.device, dtype=logits.dtype)
    for tokens, weight in sought:
        total -= weight * heat**2 * logs.gather(1, tokens).sum()
    if gradient is None:
        return total
    whole = heat * sum(tokens.shape[1] * weight for tokens, weight in sought)
    gradient.add_(logs.exp_(), alpha=whole)
    for tokens, weight in sought:
        # A token may be drawn more than once: all that one call adds is alike, so that a GPU may
        # add in any order.
        less = torch.full_like(tokens, -heat * weight, dtype=gradient.dtype)
        gradient.scatter_add_(1, tokens, less)
    return total
