"""A measured choice: which block goes next, and what becomes of it, by damage per parameter saved.

The candidates of every block are to leave out its attention, its MLP or both, one unit of heads,
or a quarter of its neurons (:mod:`iskd.models.reconstruction` starts each in closed form). Damage
is the rise of KL(teacher || model) on validation text, in the model as it is, so that earlier
changes count. The cheapest one by parameter goes, until a budget is met.

Most candidates are not tried again each time: what a change costs falls rarely as others are made,
so an old figure is a lower bound to go by (lazy greedy, Minoux 1978), and only the ``NEAR``
candidates with the lowest ones are measured anew before one is taken.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from iskd.errors import UserError
from iskd.models.activations import BlockCall
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import ChangedBlocks, NarrowSizes
from iskd.models.recipes import block_parameters
from iskd.models.reconstruction import BlockFit
from iskd.models.substitution import block_sizes, first_blocks
from iskd.progress import bar
from iskd.training.divergence import TeacherAnswers
from iskd.training.order import FEWEST, HALVINGS
from iskd.training.trials import BlockWalk

log = logging.getLogger("iskd.training")

NEAR = 8
"""Candidates that are measured anew, on all validation text, before one is taken."""

QUARTERS = 4
"""An MLP is narrowed by so many equal parts."""


@dataclass(frozen=True)
class Change:
    """One block made smaller."""

    block: int
    heads: int
    mlp: int

    @property
    def sizes(self) -> NarrowSizes:
        """What is left of the block."""
        return NarrowSizes(self.heads, self.mlp)

    @property
    def key(self) -> str:
        """The change as a table names it."""
        return f"{self.block}/{self.heads}/{self.mlp}"


@dataclass(frozen=True)
class Texts:
    """What a choice looks at.

    Attributes:
        calibration: sequences that starts are fitted on, int (sequences, length).
        validation: sequences that damage is measured on.
        batch_size: sequences that are run at once.
        half: compute under bfloat16 autocast.
    """

    calibration: torch.Tensor
    validation: torch.Tensor
    batch_size: int
    half: bool


def candidates(
    config: PreTrainedConfig, sizes: Mapping[int, NarrowSizes], kinds: Sequence[str]
) -> list[Change]:
    """List what could be done next.

    Args:
        config: of a model of the family.
        sizes: of the blocks that may change, as they are.
        kinds: which of ``attention``, ``heads``, ``mlp``, ``neurons`` and ``block``.
    """
    adapter = family_of(config).adapter
    share, whole = adapter.sharing_heads(config), adapter.mlp_neurons(config)
    first = first_blocks(config)
    found = []
    for block, now in sorted(sizes.items()):
        widths = [whole * part // QUARTERS for part in range(1, QUARTERS)]
        narrower = max((width for width in widths if width < now.mlp), default=0)
        options = {
            "attention": (0, now.mlp) if now.heads and now.mlp else None,
            "heads": (now.heads - share, now.mlp) if now.heads > share else None,
            "mlp": (now.heads, 0) if now.mlp and now.heads else None,
            "neurons": (now.heads, narrower) if narrower else None,
            "block": (0, 0) if now.heads or now.mlp else None,
        }
        for kind in kinds:
            option = options[kind]
            if option is not None and (option[0] or block not in first):
                found.append(Change(block, *option))
    return found


class Chooser:
    """Takes changes of a model's blocks, one by one, the cheapest by parameter first.

    Args:
        model: the model as it is, whole or with narrow blocks; its blocks are swapped in place.
        teacher: what it is compared with.
        texts: what starts are fitted on and damage is measured on.
        kinds: which changes are candidates.
        known: scores of earlier steps, by key; what is missing is measured.

    Attributes:
        scores: the damage by parameter saved of each change, in nats, as last measured.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        texts: Texts,
        kinds: Sequence[str],
        known: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.teacher = model.eval(), teacher.eval()
        self.texts, self.kinds = texts, kinds
        self.scores = dict(known or {})
        compact = ChangedBlocks.of(model.config).compact
        blocks = range(model.config.num_hidden_layers)
        self._sizes = {i: block_sizes(model.config, i) for i in blocks if i not in compact}
        self._blocks = family_of(model.config).blocks(model)
        self._answers = TeacherAnswers(teacher, texts.validation, texts.batch_size, half=texts.half)
        first = max(FEWEST, -(-len(texts.validation) // 2**HALVINGS))
        # Whole batches, as answers are kept by the batch.
        self._coarse = min(len(texts.validation), -(-first // texts.batch_size) * texts.batch_size)
        self._now: dict[int, float] = {}

    def parameters(self) -> int:
        """Count the model's parameters as it is; tied weights count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def take(self, most: int, *, exact: bool) -> list[dict[str, Any]]:
        """Take changes until the model has no more than so many parameters.

        Args:
            most: the budget.
            exact: narrow the last block so that the budget is met to within one neuron, where the
                change would go below it.

        Returns:
            for each change, in their order, ``block``, ``heads``, ``mlp``, ``saved`` parameters,
            and the ``divergence`` from the teacher after it, in nats
        """
        taken: list[dict[str, Any]] = []
        before = self.parameters()
        progress = bar(before - most, "choosing", unit="parameter")
        while self.parameters() > most:
            options = self._options(most if exact else None)
            unknown = [change for change in options if change.key not in self.scores]
            for change, _ in self._measured(unknown, self._coarse):
                log.info("%s: %.4g nats a million parameters", change.key, self._score(change))
            near = sorted(options, key=self._order)[:NEAR]
            tried = dict(self._measured(near, len(self.texts.validation)))
            best = min(near, key=self._order)
            saved = self._saved(best)
            block, divergence = tried[best]
            self._swap(best, block)
            self._now = {len(self.texts.validation): divergence}
            taken.append({**asdict(best), "saved": saved, "divergence": divergence})
            log.info("%s taken: %d parameters fewer, KL %.4f", best.key, saved, divergence)
            progress.update(min(saved, progress.total - progress.n))
        progress.close()
        return taken

    def repeat(self, taken: Sequence[Mapping[str, Any]]) -> None:
        """Take the same changes as another attempt did, which come to the same bits."""
        for row in taken:
            change = Change(row["block"], row["heads"], row["mlp"])
            for fit in self._fits([change]):
                self._swap(change, fit.smaller(change.sizes))

    def _score(self, change: Change) -> float:
        return 1e6 * self.scores[change.key]

    def _order(self, change: Change) -> tuple[float, str]:
        return self.scores[change.key], change.key

    def _saved(self, change: Change) -> int:
        now = block_parameters(self.model.config, self._sizes[change.block])
        return now - block_parameters(self.model.config, change.sizes)

    def _swap(self, change: Change, block: nn.Module) -> None:
        self._blocks[change.block] = block
        self._sizes[change.block] = change.sizes

    def _options(self, most: int | None) -> list[Change]:
        """List the candidates; with a budget, none that goes below it, where that can be."""
        found = candidates(self.model.config, self._sizes, self.kinds)
        if not found:
            raise UserError(
                f"no change is left to take, and the model still has {self.parameters()} "
                f"parameters; ask for less reduction, or for more kinds of changes"
            )
        if most is None:
            return found
        needed = self.parameters() - most
        fitting = {change.key: change for change in found if self._saved(change) <= needed}
        for change in found:
            now = self._sizes[change.block]
            if change.key in fitting or not now.mlp:
                continue
            one = self._saved(Change(change.block, now.heads, now.mlp - 1)) if now.mlp > 1 else 0
            left = now.mlp - -(-needed // one) if one else 0
            if left > 0:
                exact = Change(change.block, now.heads, left)
                fitting[exact.key] = exact
        return list(fitting.values()) or found

    def _fits(self, changes: Sequence[Change]) -> Iterator[BlockFit]:
        """Walk to the blocks of some changes, in their order; give what makes them smaller."""
        texts = self.texts
        walks = [
            BlockWalk(model, texts.calibration, texts.batch_size, half=texts.half)
            for model in (self.model, self.teacher)
        ]
        own, goal = walks
        for index in sorted({change.block for change in changes}):
            while own.index < index:
                own.advance()
                goal.advance()
            calls = [
                BlockCall(call.hidden, call.args, call.kwargs, theirs.output)
                for call, theirs in zip(own.calls(), goal.calls(), strict=True)
            ]
            yield BlockFit(
                self._blocks[index],
                self._sizes[index],
                index,
                self.model.config,
                calls,
                half=texts.half,
            )

    def _measured(
        self, changes: Sequence[Change], count: int
    ) -> Iterator[tuple[Change, tuple[nn.Module, float]]]:
        """Measure changes on the first sequences, note their scores, and give what was tried."""
        if not changes:
            return
        texts = self.texts
        walk = BlockWalk(self.model, texts.validation[:count], texts.batch_size, half=texts.half)

        def divergence(number: int) -> float:
            return self._answers.divergence(self.model, number)

        if count not in self._now:
            self._now[count] = walk.measure(self._blocks[0], divergence)
        order = sorted(changes, key=lambda change: change.block)
        progress = bar(len(order), "measuring", unit="change")
        for fit in self._fits(order):
            while walk.index < fit.index:
                walk.advance()
            for change in (one for one in order if one.block == fit.index):
                block = fit.smaller(change.sizes)
                value = walk.measure(block, divergence)
                self.scores[change.key] = (value - self._now[count]) / self._saved(change)
                progress.update()
                yield change, (block, value)
        progress.close()
