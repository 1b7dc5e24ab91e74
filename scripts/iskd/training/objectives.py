"""What a model is trained to do, as a loss over one batch."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import family_of
from iskd.models.activations import first_tensor
from iskd.runtime.distributed import batch_mean
from iskd.settings import ObjectiveSettings
from iskd.training.chunked import LARGE_VOCABULARY, Target, TeacherHead, chunked_loss
from iskd.training.row_losses import TeacherDraws, Terms
from iskd.training.teacher_cache import TeacherCache

Objective = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
"""Give the loss of what is trained, a model or a part of one, on a batch."""


def next_token_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Give the mean cross-entropy of the next token, in nats.

    ``batch`` holds ``input_ids`` of shape (sequences, positions).
    """
    ids = batch["input_ids"]
    if in_chunks(model):
        return _chunked(model, _last_hidden(model, ids), ids, Terms(1.0, 0.0, 1.0), None)
    return _cross_entropy(model(input_ids=ids, use_cache=False).logits, ids)


def in_chunks(model: Any) -> bool:
    """Say whether a model's losses are worked out in chunks, without whole logits.

    They are where its vocabulary is large, unless it is wrapped, for several processes or by a
    compiler: then it must be called as a whole.
    """
    return (
        isinstance(model, PreTrainedModel)
        and model.config.vocab_size >= LARGE_VOCABULARY
        and isinstance(model.get_output_embeddings(), nn.Linear)
    )


def _last_hidden(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def _chunked(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    terms: Terms,
    teacher: Target | None,
    *,
    told: torch.Tensor | None = None,
) -> torch.Tensor:
    rows = hidden[:, :-1].flatten(0, 1)
    labels = ids[:, 1:].flatten().long()
    return chunked_loss(
        rows, model.get_output_embeddings(), labels, terms, teacher, next_token=told
    )


def _cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().long()
    )


@torch.no_grad()
def _told_cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Give what :func:`_cross_entropy` does, one sequence at a time: it costs no memory."""
    parts = [_cross_entropy(logits[n : n + 1], ids[n : n + 1]) for n in range(len(ids))]
    return torch.stack(parts).mean()


class Mixture:
    """Next-token loss mixed with what a teacher can tell.

    loss = next_token * CE + kl * T^2 * KL(teacher_T || student_T) + hidden * H

    CE and KL are in nats, means over the positions that have a next token. Both distributions of
    KL are softened by the temperature T, and the factor T^2 keeps the gradient's size (Hinton et
    al. 2015, arXiv 1503.02531, section 2). H is the mean over the outer blocks, matched by index,
    of the squared error between the student's output and the teacher's, over the mean square of
    the teacher's. A term of weight 0 is not computed.

    The teacher becomes frozen and free of dropout, answers in its own data type, and follows the
    batch to its device. For ``kl`` what was recorded of it can take its place.

    Args:
        settings: the weights of the terms (0 or more), and the temperature of KL (above 0).
        teacher: needed by ``kl`` and ``hidden``; of the student's vocabulary and, for
            ``hidden``, of its number of blocks and width.
        cache: recorded answers, in place of the teacher.
        mask: hand the student an attention mask of ones, as the published code does. It changes
            nothing in a model that treats masks rightly.

    Attributes:
        next_token: CE of the latest batch, without a gradient, to compare curves of different
            objectives. None where it is the loss itself, or needs logits that no term does.

    Raises:
        UserError: weights that make no loss, or a term that needs a teacher and has none.
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        teacher: PreTrainedModel | None = None,
        *,
        cache: TeacherCache | None = None,
        mask: bool = False,
    ) -> None:
        _check(settings)
        if cache is not None and settings.hidden:
            raise UserError(
                "the objective's term hidden needs the teacher itself: set it to 0, or "
                "teacher_cache to none"
            )
        if teacher is None and cache is None and settings.needs_teacher:
            raise UserError(
                "the objective's terms kl and hidden compare with a teacher, and there is none: "
                "set both to 0 or name a teacher"
            )
        self.settings = settings
        self.teacher = teacher
        self.cache = cache
        self.mask = mask
        self.next_token: torch.Tensor | None = None
        self._pure = settings.next_token == 1 and not settings.needs_teacher
        if teacher is not None:
            teacher.eval().requires_grad_(requires_grad=False)

    def __call__(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Give the mixed loss for ``input_ids`` of shape (sequences, positions).

        ``counted`` in the batch says how many of them count, where not all do, and ``index``, of
        shape (sequences,), which ones of the training they are, where answers are recorded.

        Raises:
            UserError: the student's shape does not allow a term.
        """
        ids, settings = batch["input_ids"], self.settings
        chunks = in_chunks(model) and not self.mask
        answer, wanted = self._ask_teacher(model, ids, chunks=chunks)
        target = self._recorded(batch) if self.cache else self._head(answer) if chunks else None
        found: list[torch.Tensor] = []
        with _outputs(_blocks(_unwrapped(model)) if settings.hidden else [], found):
            if chunks:
                given = _last_hidden(model, ids)
            else:
                extra = {"attention_mask": torch.ones_like(ids)} if self.mask else {}
                given = model(input_ids=ids, use_cache=False, **extra).logits
        terms: list[torch.Tensor] = []
        self.next_token = None
        if chunks and (settings.next_token or settings.kl):
            weights = Terms(settings.next_token, settings.kl, settings.temperature)
            self.next_token = None if self._pure else torch.zeros((), device=ids.device)
            terms.append(_chunked(model, given, ids, weights, target, told=self.next_token))
        elif settings.next_token:
            terms.append(settings.next_token * (entropy := _cross_entropy(given, ids)))
            self.next_token = None if self._pure else entropy.detach()
        elif not chunks:
            self.next_token = _told_cross_entropy(given, ids)
        if not chunks and isinstance(target, TeacherDraws):
            terms.append(settings.kl * _drawn_divergence(given, target, settings.temperature))
        elif not chunks and settings.kl:
            if isinstance(target, TeacherHead):
                answer = target.logits(slice(None)).unflatten(0, (len(ids), -1))
            elif answer is not None:
                answer = answer[:, :-1]
            assert answer is not None  # noqa: S101 - there is a teacher, or what it has said
            terms.append(settings.kl * _divergence(given, answer, settings.temperature))
        if settings.hidden:
            # One of several processes may hold a sequence that is not its own: see trainer.py.
            counted = int(batch.get("counted", len(ids)))
            gaps = [_gap(own, other, counted) for own, other in zip(found, wanted, strict=True)]
            terms.append(settings.hidden * torch.stack(gaps).mean())
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]

    def _head(self, answer: torch.Tensor | None) -> TeacherHead | None:
        if self.teacher is None or answer is None:
            return None
        return TeacherHead(answer[:, :-1].flatten(0, 1), self.teacher.get_output_embeddings())

    def _recorded(self, batch: dict[str, torch.Tensor]) -> Target:
        assert self.cache is not None  # noqa: S101 - asked for only then
        return self.cache.target(batch["index"], batch["input_ids"].device)

    def _ask_teacher(
        self, model: PreTrainedModel, ids: torch.Tensor, *, chunks: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Give what KL compares with, where it is needed, and the teacher's blocks' outputs, for H.

        The former is the teacher's logits, or in chunks its last hidden states.
        """
        teacher, settings = self.teacher, self.settings
        wanted: list[torch.Tensor] = []
        if self.cache is not None:
            _check_vocabulary(_unwrapped(model).config.vocab_size, self.cache.vocabulary)
        if teacher is None or not settings.needs_teacher:
            return None, wanted
        if settings.hidden:
            _check_shapes(_unwrapped(model), teacher)
        if settings.kl and chunks:
            _check_vocabulary(model.config.vocab_size, teacher.config.vocab_size)
        teacher.to(ids.device)
        # Without the logits, their large matrix product is saved too.
        run = teacher if settings.kl and not chunks else teacher.base_model
        with (
            torch.inference_mode(),
            torch.autocast(ids.device.type, enabled=False),
            _outputs(_blocks(teacher) if settings.hidden else [], wanted),
        ):
            answer = run(input_ids=ids, use_cache=False)
        if not settings.kl:
            return None, wanted
        return (answer.last_hidden_state if chunks else answer.logits), wanted


def _check(settings: ObjectiveSettings) -> None:
    for key in ("next_token", "kl", "hidden", "temperature"):
        value = getattr(settings, key)
        right = value > 0 if key == "temperature" else value >= 0
        if not (right and math.isfinite(value)):
            bound = "above 0" if key == "temperature" else "0 or more"
            raise UserError(f"the objective's {key} is {value}: give a number, {bound}")
    if not (settings.next_token or settings.needs_teacher):
        raise UserError("all weights of the objective are 0: nothing would be trained")


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    return list(family_of(model.config).blocks(model))


def _unwrapped(model: Any) -> PreTrainedModel:
    """Give the model itself where it is wrapped, as it is with several processes."""
    inner: PreTrainedModel = model.module if isinstance(model, DistributedDataParallel) else model
    return inner


def _check_shapes(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    own, other = (
        f"{len(_blocks(model))} blocks of width {model.config.hidden_size}"
        for model in (student, teacher)
    )
    if own != other:
        raise UserError(
            f"the objective's term hidden needs a student of the teacher's shape: it has {own}, "
            f"the teacher {other}; set hidden to 0"
        )


@contextlib.contextmanager
def _outputs(blocks: list[nn.Module], store: list[torch.Tensor]) -> Iterator[None]:
    """Collect the blocks' outputs, in the order of their calls."""

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        store.append(first_tensor(output))

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gap(own: torch.Tensor, other: torch.Tensor, counted: int) -> torch.Tensor:
    other = other.float()
    return (own.float() - other).square().mean() / batch_mean(other.square(), counted)


def _divergence(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Give T^2 KL(target_T || logits_T), the mean over all positions but each sequence's last.

    Args:
        logits: (sequences, positions, vocabulary).
        target: (sequences, positions - 1, vocabulary).
        temperature: T.
    """
    _check_vocabulary(logits.shape[-1], target.shape[-1])
    value: torch.Tensor = _SoftenedDivergence.apply(  # type: ignore[no-untyped-call]
        logits, target, temperature
    )
    return value


def _drawn_divergence(
    logits: torch.Tensor, drawn: TeacherDraws, temperature: float
) -> torch.Tensor:
    """Give the same from draws, as :class:`~iskd.training.row_losses.TeacherDraws` says."""
    rows = logits[:, :-1].flatten(0, 1).float()
    logs = functional.log_softmax(rows / temperature, dim=-1).gather(1, drawn.tokens)
    return temperature**2 * (drawn.log_share - logs.mean(-1)).mean()


def _check_vocabulary(own: int, other: int) -> None:
    if own != other:
        raise UserError(
            f"the student's vocabulary has {own} entries, the teacher's {other}: the objective's "
            f"term kl needs the same tokenizer for both"
        )


class _SoftenedDivergence(torch.autograd.Function):
    """The divergence with its gradient worked out in the forward pass, sequence by sequence.

    Autograd would keep both distributions in float32, and make more copies on the way: several
    times (sequences, positions, vocabulary), which for a vocabulary of 50,000 is most of the
    memory of a training step. Here one tensor of that shape is kept, in the logits' own type.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, target: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        sequences, positions, _ = logits.shape
        count = sequences * (positions - 1)
        gradient = torch.zeros_like(logits)
        total = torch.zeros((), device=logits.device)
        for row in range(sequences):
            own = functional.log_softmax(logits[row, :-1].float() / temperature, dim=-1)
            wanted = functional.log_softmax(target[row].float() / temperature, dim=-1)
            total += functional.kl_div(own, wanted, reduction="sum", log_target=True)
            # d KL / d logits = (own - wanted) / T, so one factor T of the two is left.
            gradient[row, :-1] = own.exp_().sub_(wanted.exp_()).mul_(temperature / count)
        ctx.save_for_backward(gradient)
        return total * (temperature**2 / count)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None
