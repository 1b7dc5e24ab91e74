"""Losses of some rows of logits and their gradients: next token, and KL to a teacher.

A row is one position. :mod:`iskd.training.chunked` asks for them, piece by piece.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from iskd.training.compiling import Fusable


@dataclass(frozen=True)
class Terms:
    """Weights of next-token cross-entropy and of KL, and the temperature of the latter."""

    next_token: float
    kl: float
    temperature: float


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

    def __getitem__(self, rows: slice) -> "TeacherDraws":
        """Give the draws of some rows."""
        return TeacherDraws(self.tokens[rows], self.log_share[rows])


def loss_of_rows(
    logits: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor | TeacherDraws | None,
    terms: Terms,
    *,
    gradient: torch.Tensor | None,
    count: int,
    told: torch.Tensor | None,
) -> torch.Tensor:
    """Give some rows' part of the loss, and add its gradient to ``gradient``.

    Args:
        logits: the model's, of these rows.
        labels: what they are to predict.
        target: the teacher's logits of these rows, maybe with a padded vocabulary, or its draws.
        terms: the weights.
        gradient: where it is wanted.
        count: rows that the means are over.
        told: a scalar that CE's mean is added to, whatever its weight.
    """
    weight = terms.next_token / count
    if isinstance(target, TeacherDraws):
        if told is not None:
            chosen = functional.log_softmax(logits, dim=-1).gather(1, labels[:, None])
            told -= chosen.sum() / count
        return _from_draws(logits, labels, target, terms, gradient=gradient, count=count)
    if target is not None:
        target = target[:, : logits.shape[1]].to(logits.dtype)
    if target is not None and weight and terms.temperature == 1:
        entropy, divergence = _both(
            logits, labels, target, gradient, weight=weight, kl=terms.kl / count
        )
        if told is not None:
            told += entropy / count
        return weight * entropy + divergence
    total = torch.zeros((), device=logits.device, dtype=logits.dtype)
    if weight or told is not None:
        entropy = _cross_entropy(logits, labels, gradient, weight)
        total += weight * entropy
        if told is not None:
            told += entropy / count
    if target is not None:
        total += _divergence(logits, target, gradient, terms, count)
    return total


@Fusable
def _both(
    logits: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    gradient: torch.Tensor | None,
    *,
    weight: float,
    kl: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the sum of -log p(label), and that of KL by its weight; add both terms' gradients.

    At temperature 1 the terms share the model's softmax, which is most of the work.
    """
    own = functional.log_softmax(logits, dim=-1)
    wanted = functional.log_softmax(target, dim=-1)
    entropy = -own.gather(1, labels[:, None]).sum()
    shares = wanted.exp()
    divergence = kl * (wanted.sub_(own).mul_(shares)).sum()
    if gradient is not None:
        gradient.add_(own.exp_(), alpha=weight + kl).sub_(shares, alpha=kl)
        _take_off(gradient, labels, weight, scatter=gradient.device.type != "cuda")
    return entropy, divergence


@Fusable
def _cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, gradient: torch.Tensor | None, weight: float
) -> torch.Tensor:
    """Give the sum of -log p(label), and add its gradient by a weight to ``gradient``."""
    logs = functional.log_softmax(logits, dim=-1)
    chosen = logs.gather(1, labels[:, None]).sum()
    if gradient is not None and weight:
        gradient.add_(logs.exp_(), alpha=weight)
        _take_off(gradient, labels, weight, scatter=gradient.device.type != "cuda")
    return -chosen


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
    """Give a weighted sum of T^2 KL, and add its gradient to ``gradient``."""
    heat, weight = terms.temperature, terms.kl / count
    own = functional.log_softmax(logits / heat, dim=-1)
    wanted = functional.log_softmax(target / heat, dim=-1)
    shares = wanted.exp()
    value = (wanted.sub_(own).mul_(shares)).sum()
    if gradient is not None:
        # d T^2 KL / d logits = T (own - wanted).
        gradient.add_(own.exp_().sub_(shares), alpha=weight * heat)
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
