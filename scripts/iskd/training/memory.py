"""How much memory a training takes, worked out before it is tried.

Weights, gradients and the optimiser's moments follow from the parameters. What the forward pass
keeps for the way back is counted on tensors that have shapes and no numbers: each storage that
autograd saves, once. Kernels that need room of their own, the allocator's rounding and the
libraries' half a gigabyte come on top: leave a tenth of a card to them.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.folder import load_config
from iskd.settings import CacheKind, ObjectiveSettings
from iskd.training.chunked import ROWS
from iskd.training.objectives import in_chunks, next_token_loss

_FLOAT32 = 4
# Tokens are looked up as int64.
_DRAWN = 8


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a training step holds when it holds most, when its backward pass begins.

    Attributes:
        weights: the parameters in float32.
        gradients: as many, in float32.
        optimizer: Adam's two moments, in float32.
        activations: what autograd keeps, the logits' gradient, and what of one block is computed
            again where there is checkpointing. Where losses are worked out in chunks, instead of
            the logits one chunk of them, and the gradients that are ready before the backward
            pass.
        teacher: a frozen teacher's weights, and its logits or last hidden states; of one whose
            answers are recorded, its output projection and those of a batch, or what was drawn;
            0 without one.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    teacher: int

    @property
    def total(self) -> int:
        """The sum: what a GPU must have free, its libraries' own needs aside."""
        return sum(getattr(self, field.name) for field in fields(self))


def plan_memory(
    config: PreTrainedConfig,
    sequences: int,
    length: int,
    *,
    precision: str = "float32",
    checkpointing: bool = False,
    teacher: PreTrainedConfig | None = None,
    teacher_precision: str = "float32",
    teacher_cache: CacheKind = "none",
) -> MemoryPlan:
    """Work out the memory of a training step; nothing is allocated.

    Args:
        config: of the model that is trained, its changed blocks included.
        sequences: that go through the model at once (``micro_batch``).
        length: tokens of each.
        precision: ``float32`` or ``bfloat16`` (autocast).
        checkpointing: keep each block's input only.
        teacher: config of a teacher whose distribution is learnt from (the term ``kl``).
        teacher_precision: the data type that it answers in.
        teacher_cache: whether it is asked, or what was recorded.
    """
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        weights = _FLOAT32 * sum(p.numel() for p in model.parameters())
        kept = _kept(model, sequences, length, precision)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            inputs = _kept(model, sequences, length, precision)
            kept = inputs + (kept - inputs) // config.num_hidden_layers
        rows, own = sequences * length, 2 if precision == "bfloat16" else _FLOAT32
        chunks = in_chunks(model)
        kept += _of_chunks(model, rows, own) if chunks else _FLOAT32 * rows * config.vocab_size
        theirs = 0
        if teacher is not None:
            size = getattr(torch, teacher_precision).itemsize
            theirs = _of_teacher(teacher, rows, size, teacher_cache)
            theirs += _of_answer(teacher, rows, size, own, teacher_cache, chunks=chunks)
    return MemoryPlan(weights, weights, 2 * weights, kept, theirs)


def _of_chunks(model: PreTrainedModel, rows: int, own: int) -> int:
    """Count what a chunked loss holds when it holds most.

    That is the gradients of the hidden states and of the output projection, the projection in the
    type it computes in, and of one chunk the logits, logarithms and gradients in float32, and as
    much again in the type it computes in or on the way.

    Args:
        model: the model.
        rows: positions of a batch.
        own: bytes of a number in the type that products are computed in.
    """
    projection: int = model.get_output_embeddings().weight.numel()
    chunk = min(rows, ROWS) * int(model.config.vocab_size)
    copied = own * projection if own < _FLOAT32 else 0
    return (
        _FLOAT32 * (rows * int(model.config.hidden_size) + projection)
        + copied
        + 4 * _FLOAT32 * chunk
    )


def _of_teacher(config: PreTrainedConfig, rows: int, size: int, cache: CacheKind) -> int:
    """Count a teacher's weights, as far as they are needed, or what was drawn in their place.

    Args:
        config: the teacher's.
        rows: positions of a batch.
        size: bytes of one of its numbers.
        cache: what is recorded.
    """
    if cache == "sampled":
        return rows * (_DRAWN * ObjectiveSettings().draws + _FLOAT32)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    part = model.get_output_embeddings() if cache == "exact" else model
    return size * sum(int(p.numel()) for p in part.parameters())


def _of_answer(
    config: PreTrainedConfig, rows: int, size: int, own: int, cache: CacheKind, *, chunks: bool
) -> int:
    """Count what is worked out from a teacher's answer.

    Args:
        config: the teacher's.
        rows: positions of a batch.
        size: bytes of one of its numbers.
        own: bytes of one of the student's logits.
        cache: what is recorded.
        chunks: whether the loss is worked out in chunks.
    """
    entries = int(config.vocab_size)
    states = size * rows * int(config.hidden_size) if chunks or cache == "exact" else 0
    chunk = (min(rows, ROWS) if chunks else rows) * entries
    if cache == "sampled":
        # Softened logits and their logarithms, in float32.
        return 2 * _FLOAT32 * chunk
    if chunks:
        return states + size * chunk + 2 * _FLOAT32 * chunk
    # Its logits, and the gradient that the divergence leaves in the student's type.
    return states + (size + own) * chunk


def largest_micro_batch(plan: Callable[[int], MemoryPlan], room: int) -> int:
    """Find how many sequences can go through the model at once.

    Args:
        plan: the plan for a number of sequences; from two on it grows by the same with each.
        room: bytes.

    Returns:
        their number; 0 where not even one fits
    """
    # A single sequence needs some copies less.
    one, two, three = (plan(sequences).total for sequences in (1, 2, 3))
    if two > room:
        return int(one <= room)
    return 2 + (room - two) // (three - two)


def _kept(model: PreTrainedModel, sequences: int, length: int, precision: str) -> int:
    """Count the bytes that autograd keeps between forward and backward, parameters left out."""
    known = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            # The storage itself is held, so that no other one gets its address.
            sizes[storage._cdata] = storage.nbytes(), storage
        return tensor

    same: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor  # noqa: E731
    model.train()
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext()
    ids = torch.zeros(sequences, length, dtype=torch.long)
    with saved_tensors_hooks(keep, same), autocast:
        if in_chunks(model):
            model.base_model(input_ids=ids, use_cache=False).last_hidden_state.sum()
        else:
            next_token_loss(model, {"input_ids": ids})
    return sum(size for size, _ in sizes.values())


def memory_table(
    model: Path,
    length: int,
    cards: Sequence[float],
    *,
    kl: bool,
    teacher_cache: CacheKind = "none",
) -> str:
    """Write a Markdown table: what a training takes, and the micro_batch that fits on each card.

    Args:
        model: folder with a model's ``config.json``.
        length: tokens per sequence.
        cards: their sizes in GB (10^9 bytes); a tenth of each is left to the libraries.
        kl: the loss has a term of a teacher of the model's own shape, in bfloat16.
        teacher_cache: whether that is asked, or what was recorded.

    Raises:
        UserError: there is no config, it is of no family that is known, or ``length`` is too long.
    """
    config = _config(model)
    if not 0 < length <= config.max_position_embeddings:
        raise UserError(
            f"--length {length}: {model} takes 1 to {config.max_position_embeddings} tokens"
        )
    head = ["precision", "checkpointing", "weights", "gradients", "Adam", "one sequence", "teacher"]
    lines = [[*head, *(f"micro_batch on {card:g} GB" for card in cards)], ["---"] * len(head)]
    lines[1] += ["---"] * len(cards)
    for precision in ("float32", "bfloat16"):
        for checkpointing in (False, True):
            plan = cache(
                partial(
                    plan_memory,
                    config,
                    length=length,
                    precision=precision,
                    checkpointing=checkpointing,
                    teacher=config if kl else None,
                    teacher_precision="bfloat16",
                    teacher_cache=teacher_cache,
                )
            )
            one = plan(1)
            parts = (one.weights, one.gradients, one.optimizer, one.activations, one.teacher)
            fits = [largest_micro_batch(plan, int(0.9e9 * card)) for card in cards]
            row = [precision, "yes" if checkpointing else "no"]
            row += [f"{size / 1e9:.2f} GB" for size in parts]
            lines.append([*row, *(str(size) if size else "none" for size in fits)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _config(model: Path) -> PreTrainedConfig:
    if not (model / "config.json").is_file():
        raise UserError(f"{model}: no config.json here; name a Hugging Face model's folder")
    try:
        config = load_config(model)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"{model}: config.json cannot be read ({''.join(reason)})") from error
    family_of(config)
    return config
