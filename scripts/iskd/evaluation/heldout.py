"""How well a language model predicts text it was not trained on, beside its teacher."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from iskd.errors import UserError
from iskd.evaluation.answers import scoring
from iskd.evaluation.losses import COMPARED
from iskd.models.modeling.iskd_blocks import is_published
from iskd.runtime.workdir import WorkFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("iskd.evaluation")


def score_sequences(
    model: "PreTrainedModel",
    sequences: torch.Tensor,
    *,
    batch_size: int,
    teacher: "PreTrainedModel | None" = None,
    stories: Sequence[int] | None = None,
    work: WorkFolder | None = None,
) -> list[dict[str, Any]]:
    """Measure each block of tokens: loss, and distance to the teacher.

    In each block the first token is context only: L - 1 predictions per block. All numbers of a
    block are means over these. With p the teacher's next-token distribution and q the model's,

    - loss is the cross-entropy -log q(next token), in nats,
    - kl is the forward divergence KL(p || q) = sum_v p(v) (log p(v) - log q(v)), in nats,
    - agreement is the share of predictions whose likeliest token is the teacher's.

    Vocabularies of different sizes (a padded embedding) are compared over the entries that both
    have, each distribution normalised over these. Logits are taken to float32 for the softmax,
    sums to float64.

    Args:
        model: A causal language model; left in the mode (train or eval) it came in.
        sequences: Token ids, integer, shape (N, L) with L >= 2; on any device.
        batch_size: Blocks per forward pass.
        teacher: What the model is compared with; on the model's device. Its mode is left alone too.
        stories: Which story each block comes from, (N,), where that is known.
        work: Where the sequences' scores are kept, if the evaluation is to survive being killed: it
            goes on from them and ends with the same bits.

    Returns:
        One record per block: ``index``, ``source`` (a story or, where none is known, the block),
        ``tokens`` (predictions), ``loss`` and, beside a teacher, ``kl`` and ``agreement``.

    Raises:
        UserError: There is no block, the batch size is below 1, or a loss is no number.
        ValueError: The sequences are not an integer matrix with at least two columns.
        Interrupted: The process was asked to stop; what was scored is kept.
    """
    if sequences.ndim != 2 or sequences.is_floating_point() or sequences.shape[1] < 2:
        raise ValueError(
            f"sequences must be integer (N, L >= 2), got {sequences.dtype} {sequences.shape}"
        )
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    if not len(sequences):
        raise UserError("held-out text has no full block: give more text or shorten the block")
    shared = shared_vocabulary(model, teacher)
    with (
        _measuring(model, teacher),
        torch.inference_mode(),
        scoring(work, model.device) as score,
    ):
        scores = score(
            sequences.split(batch_size),
            lambda batch: _batch_scores(model, teacher, batch.to(model.device), shared),
            sequences.cpu().contiguous().numpy().tobytes(),
        )
    _check_finite(scores)
    names = ("loss", *COMPARED[: len(scores[0]) - 1])
    return [
        {
            "index": index,
            "source": f"block {index}" if stories is None else f"story {stories[index]}",
            "tokens": sequences.shape[1] - 1,
            **dict(zip(names, values, strict=True)),
        }
        for index, values in enumerate(scores)
    ]


def shared_vocabulary(model: "PreTrainedModel", teacher: "PreTrainedModel | None") -> int:
    """Count the entries that a model's and its teacher's predictions have in common."""
    own = int(model.config.vocab_size)
    if teacher is None or teacher.config.vocab_size == own:
        return own
    shared = min(own, int(teacher.config.vocab_size))
    log.warning(
        "the model predicts %d entries and its teacher %d: they are compared over the first %d",
        own,
        teacher.config.vocab_size,
        shared,
    )
    return shared


@contextmanager
def _measuring(*models: "PreTrainedModel | None") -> Iterator[None]:
    """Switch dropout off, and give every model back in the mode it came in."""
    present = [model for model in models if model is not None]
    modes = [model.training for model in present]
    for model in present:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(present, modes, strict=True):
            model.train(mode)


def _logits(model: "PreTrainedModel", batch: torch.Tensor) -> torch.Tensor:
    """Return the predictions of the next tokens: (B, L) -> (B, L - 1, V)."""
    # The published code hands over a mask; any other model is the same with and without one.
    given = {"attention_mask": torch.ones_like(batch)} if is_published(model.config) else {}
    logits: torch.Tensor = model(input_ids=batch, use_cache=False, **given).logits
    return logits[:, :-1]


def _batch_scores(
    model: "PreTrainedModel", teacher: "PreTrainedModel | None", batch: torch.Tensor, shared: int
) -> list[list[float]]:
    """Return each block's means: (B, L) -> B lists of [loss] or [loss, kl, agreement]."""
    own = _logits(model, batch)
    other = None if teacher is None else _logits(teacher, batch)
    scores: list[list[float]] = []
    # Block by block, because float32 copies of all logits would be several times the models.
    for row, tokens in enumerate(batch[:, 1:].long()):
        losses = functional.cross_entropy(own[row].float(), tokens, reduction="none")
        measured = [losses]
        if other is not None:
            measured += _compared(own[row, :, :shared], other[row, :, :shared])
        # To the CPU before float64: not every accelerator has that type.
        means = [values.cpu().double().mean() for values in measured]
        scores.append([float(mean) for mean in means])
    return scores


def _compared(own: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
    """Return KL(other || own), and whether the likeliest agree: (P, V) twice -> (P,) each."""
    log_q = functional.log_softmax(own.float(), dim=-1)
    log_p = functional.log_softmax(other.float(), dim=-1)
    divergence = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
    # Rounding can leave a divergence of nothing a last bit below zero.
    return [divergence.clamp(min=0), (own.argmax(dim=-1) == other.argmax(dim=-1)).float()]


def _check_finite(scores: Sequence[Sequence[float]]) -> None:
    for index, values in enumerate(scores):
        if not torch.tensor(values).isfinite().all():
            raise UserError(
                f"block {index} of the text has a loss of {values[0]}: the model's weights are "
                f"broken, or evaluation.precision is too coarse for them"
            )
