"""Trials of replacements in a model as it is, one block at a time: nothing of it is copied.

The hidden states before a block are worked out once and handed on from block to block, so that a
trial runs the block in its place and what follows it, and nothing before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.models.activations import BlockCall, first_tensor
from iskd.models.families import family_of
from iskd.training.objectives import next_token_loss

MOST_KEPT = 2**29
"""Bytes of hidden states that a walk that returns keeps at most."""

Rest = list[tuple[tuple[Any, ...], dict[str, Any]]]
"""By block: what else it is handed besides the hidden states (mask, positions, rotary angles)."""


class BlockWalk:
    """A model's way over some sequences, block by block, from the first one on.

    Of each batch only the hidden states at the present block are kept, of shape (sequences,
    positions, hidden size).

    Args:
        model: any decoder of a known family; is put into evaluation mode.
        sequences: tokens, int (sequences, length).
        batch_size: sequences that are run at once.
        half: compute under bfloat16 autocast; the weights stay as they are.

    Attributes:
        index: the present block.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sequences: torch.Tensor,
        batch_size: int,
        *,
        half: bool = False,
    ) -> None:
        self.model = model.eval()
        self.index = 0
        self._half = half
        self._blocks = list(family_of(model.config).blocks(model))
        self._ids = [part.long().to(model.device) for part in sequences.split(batch_size)]
        starts = [self._start(ids) for ids in self._ids]
        self._hidden = [hidden for hidden, _ in starts]
        self._rest = [rest for _, rest in starts]
        self._outputs: list[torch.Tensor] | None = None

    @torch.no_grad()
    def _start(self, ids: torch.Tensor) -> tuple[torch.Tensor, Rest]:
        """Give what the first block reads, and what else each block is handed."""
        hidden: list[torch.Tensor] = []
        rest: Rest = []

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(args[0])
            rest.append((args[1:], dict(kwargs)))

        with ExitStack() as stack:
            for block in self._blocks:
                handle = block.register_forward_pre_hook(note, with_kwargs=True)
                stack.callback(handle.remove)
            stack.enter_context(_passed_through(self._blocks))
            stack.enter_context(self._autocast())
            self.model.base_model(input_ids=ids, use_cache=False)
        return hidden[0], rest

    def calls(self) -> list[BlockCall]:
        """Give what the present block is handed and what it gives, one call for each batch."""
        outputs = self._run()
        return [
            BlockCall(hidden, *rest[self.index], output)
            for hidden, rest, output in zip(self._hidden, self._rest, outputs, strict=True)
        ]

    def advance(self) -> None:
        """Go on to the next block."""
        self._hidden, self._outputs = self._run(), None
        self.index += 1

    @torch.no_grad()
    def _run(self) -> list[torch.Tensor]:
        if self._outputs is None:
            block = self._blocks[self.index]
            with self._autocast():
                self._outputs = [
                    self._through(block, self.index, hidden, rest)
                    for hidden, rest in zip(self._hidden, self._rest, strict=True)
                ]
        return self._outputs

    def loss(self, replacement: nn.Module) -> float:
        """Give the model's mean next-token loss, in nats, with a replacement of the present block.

        Args:
            replacement: takes what the block takes; is put into evaluation mode.
        """

        def mean_loss(number: int) -> float:
            return next_token_loss(self.model, {"input_ids": self._ids[number]}).item()

        return self.measure(replacement, mean_loss)

    @torch.no_grad()
    def measure(self, replacement: nn.Module, of_batch: Callable[[int], float]) -> float:
        """Measure the model with a replacement of the present block.

        Args:
            replacement: takes what the block takes; is put into evaluation mode.
            of_batch: gives a mean over the batch of this number; while it runs, the model's blocks
                give at once what they would with the replacement.

        Returns:
            the mean over all sequences
        """
        replacement.eval()
        total, count = 0.0, 0
        with self._autocast():
            for number, ids in enumerate(self._ids):
                rest = self._rest[number]
                output = self._through(replacement, self.index, self._hidden[number], rest)
                for later in range(self.index + 1, len(self._blocks)):
                    output = self._through(self._blocks[later], later, output, rest)
                with _passed_through(self._blocks, output):
                    total += of_batch(number) * len(ids)
                count += len(ids)
        return total / count

    @contextmanager
    def weights_cast_once(self) -> Iterator[None]:
        """While in here, autocast keeps its copies of the weights from one trial to the next.

        Else each trial would convert the weights of all that follows the block, and the output
        projection's, anew. The copies, in bfloat16, take half of the model's bytes.
        """
        with self._autocast():
            yield

    def precisely(self) -> torch.autocast:
        """Compute in the weights' own type, in a place where autocast keeps its copies."""
        return torch.autocast(self.model.device.type, enabled=False)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self._half)

    @staticmethod
    def _through(block: nn.Module, index: int, hidden: torch.Tensor, rest: Rest) -> torch.Tensor:
        args, kwargs = rest[index]
        return first_tensor(block(hidden, *args, **kwargs))


class ReturningWalk(BlockWalk):
    """A walk that can go back: the hidden states before every so many blocks are kept.

    Args:
        model: see :class:`BlockWalk`, as for ``sequences``, ``batch_size`` and ``half``.
        most_kept: bytes of hidden states to keep, besides those at the first block.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sequences: torch.Tensor,
        batch_size: int,
        *,
        half: bool = False,
        most_kept: int = MOST_KEPT,
    ) -> None:
        super().__init__(model, sequences, batch_size, half=half)
        size = sum(hidden.numel() * hidden.element_size() for hidden in self._hidden)
        self._stride = max(1, -(-size * len(self._blocks) // most_kept))
        self._kept = {0: self._hidden}

    def advance(self) -> None:
        """Go on to the next block."""
        super().advance()
        if self.index % self._stride == 0:
            self._kept[self.index] = self._hidden

    def go_to(self, index: int) -> None:
        """Go to a block, from the nearest place before it whose hidden states are at hand."""
        nearest = max(kept for kept in self._kept if kept <= index)
        if index < self.index or self.index < nearest:
            self._return_to(nearest)
        while self.index < index:
            self.advance()

    def swap(self, index: int, block: nn.Module) -> None:
        """Have the model's block of this number be another one; the caller has put it there."""
        self._blocks[index] = block
        self._kept = {kept: hidden for kept, hidden in self._kept.items() if kept <= index}
        if self.index >= index:
            self._return_to(max(self._kept))

    def _return_to(self, index: int) -> None:
        self.index, self._hidden, self._outputs = index, self._kept[index], None


@contextmanager
def _passed_through(
    blocks: Sequence[nn.Module], output: torch.Tensor | None = None
) -> Iterator[None]:
    """Have each block hand its input on unchanged, and the last one give ``output`` instead."""

    def passed(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden

    def given(*_: Any, **__: Any) -> torch.Tensor | None:
        return output

    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = passed
        if output is not None:
            blocks[-1].__dict__["forward"] = given
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = forward
