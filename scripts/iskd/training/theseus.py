"""Stochastic replacement: compact blocks take over from the originals little by little."""

import copy
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.errors import UserError
from iskd.models import family_of


class StochasticBlocks:
    """Let a frozen original stand in for a compact block in some of the optimiser updates.

    BERT-of-Theseus (arXiv 2002.02925), sections 3.2 and 3.3: at each update every compact block is
    used with a probability that rises linearly from ``first`` to 1 over the first ``curriculum``
    share of the updates and then stays 1; otherwise the original is. One draw goes for the whole
    update, so that accumulated batches and the second forward of gradient checkpointing agree.

    Use it as a context, and give its ``draw`` to ``fine_tune`` as ``on_update``. While the context
    is open the compact blocks stay where they are, under their names: only their ``forward`` is
    diverted. So parameters, optimiser groups, saved states, forward hooks and whatever the model
    reads from a block are those of the compact block alone, and nothing is left to be undone in
    the block list. Before the first draw, the compact blocks are used.

    Originals are frozen and without dropout from then on, move to the compact block's device, and
    are copied if it has another data type.

    Args:
        model: the model with the compact blocks.
        originals: by index in the model's list of blocks, what each compact block replaces.
        first: probability of the compact block at the first update.
        curriculum: share of the updates in which it rises; 0 for compact blocks throughout.
        seed: seed of the draws; update n's depend on nothing else than it and their number.

    Raises:
        UserError: ``first`` or ``curriculum`` is not a share.
        IndexError: the model has no such block.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        originals: Mapping[int, nn.Module],
        *,
        first: float,
        curriculum: float,
        seed: int,
    ) -> None:
        for name, share in (("first", first), ("curriculum", curriculum)):
            if not 0 <= share <= 1:
                raise UserError(f"the replacement's {name} is {share}: give a share from 0 to 1")
        blocks = family_of(model.config).blocks(model)
        self._pairs = [(blocks[index], whole) for index, whole in sorted(originals.items())]
        self.first = first
        self.curriculum = curriculum
        self.seed = seed
        self._draws = torch.empty(0, len(self._pairs))
        self._compact = [True] * len(self._pairs)

    def probability(self, update: int, total: int) -> float:
        """Give the probability of each compact block at one update (from 0) of a run."""
        rising = self.curriculum * total
        return 1.0 if update >= rising else self.first + (1 - self.first) * update / rising

    def draw(self, update: int, total: int) -> tuple[bool, ...]:
        """Draw for one optimiser update (from 0) which blocks are the compact ones.

        Returns:
            whether each one is, by rising index
        """
        if len(self._draws) != total:
            generator = torch.Generator().manual_seed(self.seed % 2**63)
            self._draws = torch.rand(total, len(self._pairs), generator=generator)
        chance = self.probability(update, total)
        self._compact = [number < chance for number in self._draws[update].tolist()]
        return tuple(self._compact)

    def __enter__(self) -> Self:
        for place, (compact, original) in enumerate(self._pairs):
            like = next(compact.parameters())
            if any(p.dtype != like.dtype for p in original.parameters()):
                original = copy.deepcopy(original).to(like.dtype)  # noqa: PLW2901
            original.to(like.device).eval().requires_grad_(requires_grad=False)
            # nn.Module calls an instance's own forward; without it, the class's again.
            compact.__dict__["forward"] = self._either(place, compact.forward, original)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for compact, _ in self._pairs:
            compact.__dict__.pop("forward", None)

    def _either(self, place: int, compact: Any, original: nn.Module) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return (compact if self._compact[place] else original)(*args, **kwargs)

        return forward
