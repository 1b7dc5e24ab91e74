"""What a block of a model is handed and what it gives back, on given text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.models.families import family_of


@dataclass(frozen=True)
class BlockCall:
    """One call of one block.

    ``hidden`` and ``output`` have shape (batch, positions, hidden size); ``args`` and ``kwargs``
    are what else the outer model handed over (mask, positions, rotary angles).
    """

    hidden: torch.Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor


def first_tensor(output: Any) -> torch.Tensor:
    """Give a block's hidden states, which some families wrap in a tuple."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


class _Enough(Exception):  # noqa: N818 - a signal, not an error
    """The last requested block has run."""


@torch.no_grad()
def block_calls(
    model: PreTrainedModel, indices: Sequence[int], ids: torch.Tensor
) -> dict[int, BlockCall]:
    """Run a model up to the last of some blocks and give what each was handed and gave.

    Args:
        model: any decoder of a known family; left as it is.
        indices: blocks to record.
        ids: tokens, (batch, positions).
    """
    blocks = family_of(model.config).blocks(model)
    calls: dict[int, BlockCall] = {}
    last = max(indices)

    def record(index: int) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            calls[index] = BlockCall(args[0], args[1:], dict(kwargs), first_tensor(output))
            if index == last:
                raise _Enough

        return hook

    handles = [
        blocks[i].register_forward_hook(record(i), with_kwargs=True) for i in sorted(set(indices))
    ]
    try:
        model(input_ids=ids, use_cache=False)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls


def all_calls(
    model: PreTrainedModel, indices: Sequence[int], ids: torch.Tensor, batch_size: int
) -> Iterator[dict[int, BlockCall]]:
    """Give :func:`block_calls` batch by batch, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        for batch in ids.split(batch_size):
            yield block_calls(model, indices, batch.to(model.device))
    finally:
        model.train(was_training)
