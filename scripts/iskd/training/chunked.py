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

from iskd.training.row_losses import TeacherDraws, Terms, loss_of_rows

ROWS = 2048
"""Rows, of one position each, that go through the output projection at once on a GPU.

So many that a product and the passes over its result keep it busy: docs/speed.md has the times of
other numbers. At 50,000 entries a row they take 2 GB.
"""

ROWS_ON_CPU = 512
"""The same on a CPU, where the logits' gradients take the place of the logits, in their type."""

PIECE = 2**18
"""Entries of a chunk that a CPU works on at once, as many as its second-level cache holds."""

ALIGNED = 64
"""What a GPU's half-precision products like a vocabulary to be a multiple of.

A row of 50,257 numbers of 16 bits begins anywhere, and is read one number at a time; one of 50,304
is read 16 bytes at a time (NVIDIA, Deep Learning Performance, "Tensor Core Requirements").
"""

LARGE_VOCABULARY = 16_384
"""From this size on losses are worked out in chunks. Below it the plain form is as good."""


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
        most = ROWS_ON_CPU if hidden.device.type == "cpu" else ROWS
        for start in range(0, count, most):
            rows = slice(start, start + most)
            part = hidden[rows].to(used.dtype)
            # The gradients take the place of the logits, piece by piece.
            room = functional.linear(part, used, offset)
            target: torch.Tensor | TeacherDraws | None = None
            if isinstance(teacher, TeacherDraws):
                target = teacher[rows]
            elif teacher is not None and terms.kl:
                target = teacher.logits(rows)
            for piece in _pieces(room, len(weight)):
                logits = room[piece, : len(weight)].to(exact)
                gradient = torch.zeros_like(logits) if learning else None
                at = slice(start + piece.start, start + piece.stop)
                theirs = None if target is None else target[piece]
                total += loss_of_rows(
                    logits, labels[at], theirs, terms, gradient=gradient, count=count, told=told
                )
                if gradient is not None:
                    room[piece, : len(weight)] = gradient
                    if of_bias is not None:
                        of_bias += gradient.sum(0)
            if not learning:
                continue
            # What pads the vocabulary has logits of 0 here, which is its gradient, too.
            of_hidden[rows] = room @ used
            # In place, torch's counter of FLOPs would not see it.
            of_weight += room.T @ part
        ctx.save_for_backward(of_hidden, of_weight[: len(weight)], of_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place, as there is no other use: a second backward pass ends in torch's own error.
        scaled = [
            None if one is None else one.mul_(grad_output.to(one.dtype))
            for one in ctx.saved_tensors
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


def _pieces(room: torch.Tensor, width: int) -> list[slice]:
    """Say which rows of a chunk are worked on at once: on a CPU, as many as its cache holds."""
    count = len(room)
    size = max(1, PIECE // width) if room.device.type == "cpu" else count
    return [slice(first, min(count, first + size)) for first in range(0, count, size)]
