"""Block-local warm start: a compact block first learns what the replaced one does."""

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from iskd.errors import UserError
from iskd.models import family_of
from iskd.models.activations import BlockCall, block_calls, first_tensor
from iskd.settings import TrainingSettings
from iskd.training.curve import REPORTS, check_finite
from iskd.training.flops import count_flops
from iskd.training.loop import check_length, make_deterministic
from iskd.training.optimizer import make_optimizer, parameter_groups

log = logging.getLogger("iskd.training")

# Share of the updates in which the learning rate rises; then it falls along half a cosine to 0.
WARM_UP = 0.05


def warm_start(
    block: nn.Module,
    teacher: PreTrainedModel,
    index: int,
    sequences: torch.Tensor,
    settings: TrainingSettings,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Train a compact block, in place, to reproduce the output of the teacher's block ``index``.

    The block is called as the teacher calls its own, on the teacher's activations, so it can be
    trained without the model around it. loss = mean (block(x) - y)^2 / mean (y - x)^2 with x and
    y the hidden states before and after the teacher's block, both means over the batch; 1 is what
    leaving the block out would give. The idea is MOHAWK's (arXiv 2408.10189, its second stage),
    the normaliser ours.

    Args:
        block: the compact block; only its own parameters are trained.
        teacher: the model whose block is learnt; left as it was but for its device, which
            becomes the compact block's.
        index: which of the teacher's blocks.
        sequences: tokens, int (sequences, length).
        settings: of them epochs, batch size, the high learning rate, optimiser, weight decay,
            beta2, clip and precision count.
        seed: seed of the data's order and of dropout.

    Returns:
        the training curve, its last row at the last step: optimiser step, tokens seen, loss (mean
        since the row before), learning rate, FLOPs so far

    Raises:
        UserError: the teacher has no such block or takes no sequences so long, or the training
            diverges.
    """
    check_length(teacher, sequences)
    whole = family_of(teacher.config).blocks(teacher)
    if not 0 <= index < len(whole):
        raise UserError(f"block {index} does not exist: the model has blocks 0 to {len(whole) - 1}")
    seed %= 2**32
    make_deterministic(seed)
    like = next(block.parameters())
    teacher.to(like.device)
    rate = settings.learning_rate.compact
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameter_groups(block, [block], settings), settings)
    batches = _batches(len(sequences), settings.batch_size, settings.epochs, seed)
    updates = len(batches)
    autocast = settings.precision == "bfloat16"
    modes = [(module, module.training) for module in (*teacher.modules(), *block.modules())]
    teacher.eval()
    block.train()

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(like.device.type, enabled=False):
            calls = block_calls(teacher, [index], ids.long().to(like.device))
        call = _adapted(calls[index], like)
        with torch.autocast(like.device.type, torch.bfloat16, enabled=autocast):
            output = first_tensor(block(call.hidden, *call.args, **call.kwargs))
        wanted, before = call.output.float(), call.hidden.float()
        error = (output.float() - wanted).square().mean()
        # A block that does nothing at all would divide by zero.
        moved = (wanted - before).square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        return error / moved

    history: list[dict[str, Any]] = []
    started, flops, seen, recent = time.monotonic(), 0, 0, []
    try:
        per_sequence = count_flops(lambda: loss_of(sequences[:1]), trained)
        for update, (batch, factor) in enumerate(zip(batches, _factors(updates), strict=True), 1):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.zero_grad()
            loss = loss_of(sequences[batch])
            loss.backward()
            if settings.clip:
                nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            flops += per_sequence * len(batch)
            seen += len(batch)
            recent.append(loss.detach())
            if update % max(1, updates // REPORTS) == 0 or update == updates:
                history.append(
                    {
                        "phase": "warm_start",
                        "step": update,
                        "tokens": seen * sequences.shape[1],
                        "loss": torch.stack(recent).mean().item(),
                        "learning_rate": rate * factor,
                        "flops": flops,
                    }
                )
                check_finite(history[-1]["loss"], update, updates)
                recent.clear()
                log.info(
                    "warm start, step %d of %d, loss %.4f, about %.0f s left",
                    update,
                    updates,
                    history[-1]["loss"],
                    (time.monotonic() - started) / update * (updates - update),
                )
    finally:
        optimizer.zero_grad()
        for module, training in modes:
            module.training = training
    return history


def _batches(count: int, size: int, epochs: int, seed: int) -> list[torch.Tensor]:
    """Draw which sequences each update sees: all in every epoch, each time in a new order."""
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=draw) for _ in range(epochs)]
    return [batch for order in orders for batch in order.split(size)]


def _factors(updates: int) -> Iterator[float]:
    """Give what the learning rate is multiplied by, update by update: never 0, once 1."""
    rising = max(1, math.ceil(WARM_UP * updates))
    for update in range(1, updates + 1):
        if update <= rising:
            yield update / rising
        else:
            yield (1 + math.cos(math.pi * (update - rising) / (updates + 1 - rising))) / 2


def _adapted(call: BlockCall, like: torch.Tensor) -> BlockCall:
    """Make a call fit for a block of another data type, and free of a cache."""

    def fit(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(like.dtype) if value.is_floating_point() else value
        if isinstance(value, tuple | list):
            return type(value)(fit(item) for item in value)
        return None if isinstance(value, Cache) else value

    kwargs = {name: fit(value) for name, value in call.kwargs.items()}
    if "use_cache" in kwargs:
        kwargs["use_cache"] = False
    return BlockCall(fit(call.hidden), fit(call.args), kwargs, fit(call.output))
