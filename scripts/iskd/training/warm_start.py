"""Block-local warm start: a compact block first learns what the replaced one does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from iskd.data.corpus import check_length
from iskd.errors import UserError
from iskd.models import family_of
from iskd.models.activations import BlockCall, block_calls, first_tensor
from iskd.runtime.distributed import batch_mean
from iskd.runtime.workdir import WorkFolder
from iskd.settings import LearningRates, TrainingSettings
from iskd.training.loop import train

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
    work: WorkFolder | None = None,
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
        work: where the states of the run are kept, if it is to survive being killed.

    Returns:
        the training curve, as ``fine_tune`` gives it

    Raises:
        UserError: the teacher has no such block or takes no sequences so long, or the training
            diverges.
        Interrupted: the process was asked to stop; the state is saved.
    """
    check_length(teacher, sequences)
    whole = family_of(teacher.config).blocks(teacher)
    if not 0 <= index < len(whole):
        raise UserError(f"block {index} does not exist: the model has blocks 0 to {len(whole) - 1}")
    rate = settings.learning_rate.compact
    own = replace(
        settings,
        learning_rate=LearningRates(compact=rate, rest=rate),
        schedule="cosine",
        warmup=WARM_UP,
        # The loss is a ratio of a batch's means, and a block is small.
        micro_batch=None,
        checkpointing=False,
        compile=False,
    )
    like = next(block.parameters())
    teacher.to(like.device)

    def imitation(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch["input_ids"]
        counted = int(batch["counted"]) if "counted" in batch else len(ids)
        with torch.autocast(like.device.type, enabled=False):
            call = _adapted(block_calls(teacher, [index], ids)[index], like)
        output = first_tensor(module(call.hidden, *call.args, **call.kwargs))
        wanted, before = call.output.float(), call.hidden.float()
        # A block that does nothing at all would divide by zero.
        moved = batch_mean((wanted - before).square(), counted)
        return (output.float() - wanted).square().mean() / moved.clamp_min(
            torch.finfo(torch.float32).tiny
        )

    with _evaluating(teacher):
        return train(
            block,
            sequences,
            own,
            seed=seed,
            compact=[block],
            objective=imitation,
            work=work,
            phase="warm_start",
        )


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its modules back into its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
