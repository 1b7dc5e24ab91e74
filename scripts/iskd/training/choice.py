"""A measured choice: which block goes next, and what becomes of it, by damage per parameter saved.

The candidates of every block are to leave out its attention, its MLP or both, one unit of heads,
or a quarter of its neurons (:mod:`iskd.models.reconstruction` starts each in closed form). Damage
is the rise of KL(teacher || model) on validation text, in the model as it is, so that earlier
changes count. The cheapest one by parameter goes, until a budget is met.

Few candidates are tried again each time: what a change costs falls rarely as others are made, so an
old figure is a lower bound to go by (lazy greedy, Minoux 1978). The candidate with the lowest one
is measured anew, until the lowest figure is a new one. What a change makes possible, another
quarter of the same MLP, say, costs no less than the change did, and begins with its figure.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
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
from iskd.settings import ChangeKind
from iskd.training.divergence import TeacherAnswers
from iskd.training.order import DOUBLINGS, FEWEST
from iskd.training.trials import ReturningWalk

log = logging.getLogger("iskd.training")

NEAR = 8
"""Candidates that are measured anew, on all validation text, at most before one is taken."""

QUARTERS = 4
"""An MLP is narrowed by so many equal parts."""


@dataclass(frozen=True)
class Change:
    """One block made smaller, in one of the ways named in :func:`candidates`."""

    block: int
    kind: ChangeKind
    heads: int
    mlp: int

    @property
    def sizes(self) -> NarrowSizes:
        """What is left of the block."""
        return NarrowSizes(self.heads, self.mlp)

    @property
    def key(self) -> str:
        """The block and the kind of change, which a figure is noted under."""
        return f"{self.block}/{self.kind}"


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


def narrower_widths(whole: int, now: int) -> list[int]:
    """List what an MLP of so many neurons may be narrowed to, in quarters of the whole one."""
    widths = [whole * part // QUARTERS for part in range(1, QUARTERS)]
    return [width for width in widths if width < now]


def candidates(
    config: PreTrainedConfig, sizes: Mapping[int, NarrowSizes], kinds: Sequence[ChangeKind]
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
        narrower = max(narrower_widths(whole, now.mlp), default=0)
        options: dict[ChangeKind, tuple[int, int] | None] = {
            "attention": (0, now.mlp) if now.heads and now.mlp else None,
            "heads": (now.heads - share, now.mlp) if now.heads > share else None,
            "mlp": (now.heads, 0) if now.mlp and now.heads else None,
            "neurons": (now.heads, narrower) if narrower else None,
            "block": (0, 0) if now.heads or now.mlp else None,
        }
        for kind in kinds:
            option = options[kind]
            if option is not None and (option[0] or block not in first):
                found.append(Change(block, kind, *option))
    return found


def _sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model's modules, but not its parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


class Chooser:
    """Takes changes of a model's blocks, one by one, the cheapest by parameter first.

    Args:
        model: the model as it is, whole or with narrow blocks; its blocks are swapped in place.
        teacher: what damage is measured against.
        texts: what starts are fitted on and damage is measured on.
        kinds: which changes are candidates.
        known: scores of earlier steps, by block and kind; what is missing is measured.

    Attributes:
        before: the model as it was handed over, whose outputs starts are fitted to: what it has
            learnt in earlier steps stays. Parameters are shared, so that it costs no memory.
        scores: the damage by parameter saved, in nats, by block and kind, as last measured.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        texts: Texts,
        kinds: Sequence[ChangeKind],
        known: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.before = model.eval(), _sharing_weights(model)
        self.texts, self.kinds = texts, kinds
        self.scores = dict(known or {})
        compact = ChangedBlocks.of(model.config).compact
        blocks = range(model.config.num_hidden_layers)
        self._sizes = {i: block_sizes(model.config, i) for i in blocks if i not in compact}
        self._blocks = family_of(model.config).blocks(model)
        self._answers = TeacherAnswers(teacher, texts.validation, texts.batch_size, half=texts.half)
        first = max(FEWEST, -(-len(texts.validation) // 2**DOUBLINGS))
        # Whole batches, as answers are kept by the batch.
        self._coarse = min(len(texts.validation), -(-first // texts.batch_size) * texts.batch_size)
        self._own = self._walk(self.model, texts.calibration)
        self._goal = self._walk(self.before, texts.calibration)
        self._way = self._walk(self.model, texts.validation)
        self._divergence: float | None = None
        self._fit: BlockFit | None = None

    def parameters(self) -> int:
        """Count the model's parameters as it is; tied weights count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def take(self, most: int, *, least: int | None) -> list[dict[str, Any]]:
        """Take changes until the model has no more than so many parameters.

        Args:
            most: the budget.
            least: no change goes below this, to within one neuron; a block is narrowed less where
                one would.

        Returns:
            for each change, in their order, ``block``, ``heads``, ``mlp``, ``saved`` parameters,
            and the ``divergence`` from the teacher after it, in nats
        """
        taken: list[dict[str, Any]] = []
        before = self.parameters()
        progress = bar(before - most, "choosing", unit="parameter")
        while self.parameters() > most:
            options = self._options(least)
            self._first_look([change for change in options if change.key not in self.scores])
            best, block, divergence = self._cheapest(options)
            saved = self._saved(best)
            self._swap(best, block)
            self._divergence = divergence
            taken.append({**asdict(best), "saved": saved, "divergence": divergence})
            log.info(
                "block %d, %s: %d parameters fewer, KL %.4f",
                best.block,
                best.kind,
                saved,
                divergence,
            )
            progress.update(min(saved, progress.total - progress.n))
        progress.close()
        return taken

    def repeat(self, taken: Sequence[Mapping[str, Any]]) -> None:
        """Take the same changes as another attempt did, which come to the same bits."""
        for row in taken:
            change = Change(row["block"], row["kind"], row["heads"], row["mlp"])
            self._swap(change, self._smaller(change))

    def _walk(self, model: PreTrainedModel, sequences: torch.Tensor) -> ReturningWalk:
        return ReturningWalk(model, sequences, self.texts.batch_size, half=self.texts.half)

    def _order(self, change: Change) -> tuple[float, str]:
        return self.scores[change.key], change.key

    def _saved(self, change: Change) -> int:
        now = block_parameters(self.model.config, self._sizes[change.block])
        return now - block_parameters(self.model.config, change.sizes)

    def _swap(self, change: Change, block: nn.Module) -> None:
        self._blocks[change.block] = block
        self._sizes[change.block] = change.sizes
        self._fit = None
        for walk in (self._own, self._way):
            walk.swap(change.block, block)

    def _options(self, least: int | None) -> list[Change]:
        """List the candidates, none of which goes below a number of parameters, if that can be."""
        found = candidates(self.model.config, self._sizes, self.kinds)
        if not found:
            raise UserError(
                f"no change is left to take, and the model still has {self.parameters()} "
                f"parameters; ask for less reduction, or for more kinds of changes"
            )
        if least is None:
            return found
        needed = self.parameters() - least
        fitting = [change for change in found if self._saved(change) <= needed]
        for change in found:
            now = self._sizes[change.block]
            if change.kind not in ("mlp", "neurons") or change in fitting or now.mlp < 2:
                continue
            one = self._saved(Change(change.block, "neurons", now.heads, now.mlp - 1))
            left = now.mlp - -(-needed // one)
            exact = Change(change.block, "neurons", now.heads, left)
            if left > 0 and exact not in fitting:
                fitting.append(exact)
        return fitting or found

    def _smaller(self, change: Change) -> nn.Module:
        """Make the smaller block of a change, fitted to the model as it is."""
        if self._fit is None or self._fit.index != change.block:
            for walk in (self._own, self._goal):
                walk.go_to(change.block)
            calls = [
                BlockCall(call.hidden, call.args, call.kwargs, theirs.output)
                for call, theirs in zip(self._own.calls(), self._goal.calls(), strict=True)
            ]
            self._fit = BlockFit(
                self._blocks[change.block],
                self._sizes[change.block],
                change.block,
                self.model.config,
                calls,
                half=self.texts.half,
            )
        return self._fit.smaller(change.sizes)

    def _measure(self, walk: ReturningWalk, index: int, block: nn.Module) -> float:
        """Give the model's divergence on a walk's text, with a block in another one's place."""
        walk.go_to(index)
        return walk.measure(block, lambda number: self._answers.divergence(self.model, number))

    def _first_look(self, changes: Sequence[Change]) -> None:
        """Measure changes on a little text, block by block, and note their scores."""
        if not changes:
            return
        coarse = self._walk(self.model, self.texts.validation[: self._coarse])
        now = self._measure(coarse, 0, self._blocks[0])
        progress = bar(len(changes), "measuring", unit="change")
        by_block = attrgetter("block")
        for _, of_block in groupby(sorted(changes, key=by_block), by_block):
            # Once a block, so that copies of blocks that were only tried are let go.
            with coarse.weights_cast_once():
                for change in of_block:
                    with coarse.precisely():
                        block = self._smaller(change)
                    value = self._measure(coarse, change.block, block)
                    score = self.scores[change.key] = (value - now) / self._saved(change)
                    progress.update()
                    log.info("%s: %.4g nats a million parameters", change.key, 1e6 * score)
        progress.close()

    def _cheapest(self, options: Sequence[Change]) -> tuple[Change, nn.Module, float]:
        """Measure candidates until one is known to be the cheapest, or :data:`NEAR` are.

        Returns:
            the change, its block, and the model's divergence with it
        """
        if self._divergence is None:
            self._divergence = self._measure(self._way, 0, self._blocks[0])
        tried: dict[Change, tuple[nn.Module, float]] = {}
        while True:
            best = min(options if len(tried) < NEAR else tried, key=self._order)
            if best in tried:
                return best, *tried[best]
            block = self._smaller(best)
            value = self._measure(self._way, best.block, block)
            self.scores[best.key] = (value - self._divergence) / self._saved(best)
            tried[best] = block, value
