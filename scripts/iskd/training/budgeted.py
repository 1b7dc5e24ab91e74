"""All changes of a step at once, by an integer program: a control for the measured choice.

Attention and MLP of a block are parts, each with a few levels. What each level costs is measured
alone, in the model as it is; for some pairs of parts (those of one block, and the MLPs of
neighbours) it is also measured by how much their damages together differ from their sum. The
program takes at most one level of each part so that the damages, pairs included, are least and the
budget is met (compare Puzzle, arXiv 2411.19146, which has no pairs, and arXiv 2602.00161).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix
from torch import nn

from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.substitution import first_blocks
from iskd.progress import bar
from iskd.training.choice import Change, Chooser, narrower_widths

log = logging.getLogger("iskd.training")

Part = tuple[int, str]
"""A block, and which of its two parts: attention or mlp."""

GAP = 1e-4
"""Relative distance from the optimum at which the integer program may stop."""


def least_damage(
    damage: Mapping[Change, float],
    saved: Mapping[Change, int],
    together: Mapping[tuple[Part, Part], float],
    needed: int,
) -> list[Change]:
    """Choose at most one change of each part, at least damage, that save enough together.

    Args:
        damage: of each change by itself, in nats.
        saved: parameters that each saves.
        together: by pairs of parts, what two changes cost beyond their sum, in nats; a block that
            is left out was measured as a whole, so its two parts are no pair.
        needed: parameters to be saved.

    Raises:
        UserError: all changes together do not save so much.
    """
    changes = sorted(damage, key=lambda change: (change.block, change.heads, change.mlp))
    parts = {change: parts_of(change) for change in changes}
    pairs = list(together)
    count, all_parts = len(changes), sorted({part for own in parts.values() for part in own})
    rows = lil_matrix((1 + len(all_parts) + 3 * len(pairs), count + len(pairs)))
    low, high = np.full(rows.shape[0], -np.inf), np.full(rows.shape[0], np.inf)
    # Scaled, because solvers' tolerances are absolute.
    rows[0, :count], low[0] = [[saved[change] / needed for change in changes]], 1.0
    members = {
        part: [i for i, change in enumerate(changes) if part in parts[change]] for part in all_parts
    }
    for row, part in enumerate(all_parts, start=1):
        rows[row, members[part]], high[row] = 1.0, 1.0
    row = 1 + len(all_parts)
    for number, pair in enumerate(pairs, start=count):
        # Whether both are changed: no less than the sum of the two less one, no more than each.
        rows[row, number], low[row] = 1.0, -1.0
        for place, part in enumerate(pair, start=row + 1):
            rows[place, number], high[place] = 1.0, 0.0
            own = [i for i in members.get(part, []) if not set(pair) <= set(parts[changes[i]])]
            rows[row, own] = rows[place, own] = -1.0
        row += 3
    cost = [damage[change] for change in changes] + [together[pair] for pair in pairs]
    found = milp(
        np.array(cost),
        constraints=LinearConstraint(rows.tocsr(), low, high),
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP},
    )
    if found.x is None:
        raise UserError(
            "no set of changes saves so many parameters; ask for less reduction, or for more "
            "kinds of changes"
        )
    return [change for change, taken in zip(changes, found.x, strict=False) if taken > 0.5]


def parts_of(change: Change) -> tuple[Part, ...]:
    """Say which parts of a block a change is about."""
    attention, mlp = (change.block, "attention"), (change.block, "mlp")
    if change.kind == "block":
        return attention, mlp
    return (attention,) if change.kind in ("attention", "heads") else (mlp,)


class BudgetedChooser(Chooser):
    """Takes all changes of a step at once; what earlier steps measured counts no more."""

    def take(self, most: int, *, least: int | None) -> list[dict[str, Any]]:
        """Take changes so that the model has no more than so many parameters.

        Args:
            most: the budget.
            least: if it is the budget, what is saved beyond it is given back to an MLP that is
                narrowed, to within one of its neurons.

        Returns:
            as :meth:`Chooser.take`; ``scores`` are damages by parameter of each change alone
        """
        needed = self.parameters() - most
        if needed <= 0:
            return []
        now = self._measure(self._way, 0, self._blocks[0])
        levels = self._levels()
        alone: dict[Change, float] = {}
        self.scores = {}
        pairs = self._pairs(levels)
        progress = bar(len(levels) + len(pairs), "measuring", unit="change")
        for change in levels:
            block = self._smaller(change)
            alone[change] = self._measure(self._way, change.block, block) - now
            name = f"{change.key}/{change.heads}/{change.mlp}"
            self.scores[name] = alone[change] / self._saved(change)
            progress.update()
        together = {}
        for parts, (one, other) in pairs.items():
            damage = self._both(one, other) - now
            together[parts] = damage - alone[one] - alone[other]
            log.info("%s and %s: %.4g nats beyond their sum", one.key, other.key, together[parts])
            progress.update()
        progress.close()
        saved = {change: self._saved(change) for change in levels}
        chosen = least_damage(alone, saved, together, needed)
        if least == most:
            narrow = [change for change in chosen if change.kind == "neurons"]
            surplus = sum(saved[change] for change in chosen) - needed
            if narrow:
                worst = max(narrow, key=lambda change: (alone[change] / saved[change], change.key))
                place = chosen.index(worst)
                chosen[place] = self._widened(worst, surplus)
        return [self._taken(change) for change in chosen]

    def _levels(self) -> list[Change]:
        """List what each part could be reduced to, of the kinds that are allowed."""
        adapter, config = family_of(self.model.config).adapter, self.model.config
        share, whole = adapter.sharing_heads(config), adapter.mlp_neurons(config)
        found = []
        for block, now in sorted(self._sizes.items()):
            if "heads" in self.kinds:
                heads = range(share, now.heads, share)
                found += [Change(block, "heads", count, now.mlp) for count in heads]
            if "neurons" in self.kinds:
                narrower = narrower_widths(whole, now.mlp)
                found += [Change(block, "neurons", now.heads, width) for width in narrower]
            if "mlp" in self.kinds and now.mlp:
                found.append(Change(block, "mlp", now.heads, 0))
            if block in first_blocks(config):
                continue
            if "attention" in self.kinds and now.heads:
                found.append(Change(block, "attention", 0, now.mlp))
            if "block" in self.kinds and (now.heads or now.mlp):
                found.append(Change(block, "block", 0, 0))
        return found

    def _pairs(self, levels: Sequence[Change]) -> dict[tuple[Part, Part], tuple[Change, Change]]:
        """Name the pairs that are measured together, each at a middle level of both parts."""
        by_part: dict[Part, list[Change]] = {}
        for change in levels:
            if change.kind != "block":
                by_part.setdefault(parts_of(change)[0], []).append(change)
        middle = {part: own[len(own) // 2] for part, own in by_part.items()}
        blocks = sorted(self._sizes)
        wanted: list[tuple[Part, Part]] = [((i, "attention"), (i, "mlp")) for i in blocks]
        wanted += [((i, "mlp"), (i + 1, "mlp")) for i in blocks]
        return {
            pair: (middle[pair[0]], middle[pair[1]])
            for pair in wanted
            if pair[0] in middle and pair[1] in middle
        }

    def _both(self, one: Change, other: Change) -> float:
        """Measure two changes at once."""
        if one.block == other.block:
            both = Change(one.block, "block", one.heads, other.mlp)
            return self._measure(self._way, one.block, self._smaller(both))
        first, second = self._smaller(one), self._smaller(other)
        kept = self._blocks[other.block]
        self._stand_in(other.block, second)
        damage = self._measure(self._way, one.block, first)
        self._stand_in(other.block, kept)
        return damage

    def _stand_in(self, index: int, block: nn.Module) -> None:
        """Have what is measured run another block; the fits go on from the model's own."""
        self._blocks[index] = block
        self._way.swap(index, block)

    def _widened(self, change: Change, surplus: int) -> Change:
        """Give neurons back to a narrowed MLP."""
        fewer = Change(change.block, "neurons", change.heads, change.mlp - 1)
        neurons = surplus // (self._saved(fewer) - self._saved(change))
        most = self._sizes[change.block].mlp - 1
        return Change(change.block, "neurons", change.heads, min(most, change.mlp + neurons))

    def _taken(self, change: Change) -> dict[str, Any]:
        """Make a change, in the model with those before it."""
        now = self._sizes[change.block]
        if change.kind in ("attention", "heads"):
            change = Change(change.block, change.kind, change.heads, now.mlp)
        elif change.kind in ("mlp", "neurons"):
            change = Change(change.block, change.kind, now.heads, change.mlp)
        block, saved = self._smaller(change), self._saved(change)
        divergence = self._measure(self._way, change.block, block)
        self._swap(change, block)
        log.info("block %d, %s: KL %.4f", change.block, change.kind, divergence)
        return {**asdict(change), "saved": saved, "divergence": divergence}
