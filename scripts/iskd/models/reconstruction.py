"""Smaller blocks in closed form: which units stay, and what the others' absence leaves to do.

Attention and MLP apart. A unit counts for what it writes into the residual stream on given text:
the norm of its activations times that of its outgoing weights, as in Wanda (arXiv 2306.11695).
What is left is refitted by ridge regression, the attention's output projection first and then the
MLP's, until the block's output is as near as can be to that which it had in the model before the
step, on the inputs that it has in the model as it is. The ridge is chosen on rows that no fit has
seen: plain least squares fits a small calibration text too well (arXiv 2510.07782).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig

from iskd.models.activations import BlockCall, first_tensor
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import NarrowSizes, narrow_block
from iskd.models.units import UnitKind, kept_state

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are tried, as shares of the features' mean square; and no change at all."""

KINDS: tuple[UnitKind, UnitKind] = ("head", "neuron")
"""What writes through an adapter's two writers, in their order."""

HELD_OUT = 4
"""One row in so many chooses the ridge."""


@dataclass(frozen=True)
class Sums:
    """The sums of a weighted regression, of features (rows, n) on a response (rows, m).

    Attributes:
        gram: features' features, (n, n).
        cross: features' response, (n, m).
    """

    gram: torch.Tensor
    cross: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, response: torch.Tensor) -> "Sums":
        """Sum over the rows, each already multiplied with the root of its weight."""
        return cls(features.T @ features, features.T @ response)

    def plus(self, other: "Sums") -> "Sums":
        """Give the sums over the rows of both."""
        return Sums(self.gram + other.gram, self.cross + other.cross)

    def solve(self, ridge: float) -> torch.Tensor:
        """Give the coefficients (n, m) for a penalty, a share of the features' mean square."""
        gram = self.gram.double()
        gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
        return torch.linalg.solve(gram, self.cross.double()).to(self.cross.dtype)

    def gain(self, coefficients: torch.Tensor) -> float:
        """Say by how much coefficients lower the squared error below that of zeros."""
        fitted = self.gram @ coefficients
        return float((coefficients * (2 * self.cross - fitted)).sum())


def guarded_ridge(seen: Sums, held_out: Sums) -> torch.Tensor:
    """Solve a regression with the ridge that predicts held-out rows best.

    Returns:
        the coefficients fitted to all rows, (n, m); zeros where every fit predicts the held-out
        rows worse than no change does
    """
    gains = {ridge: held_out.gain(seen.solve(ridge)) for ridge in RIDGES}
    best = max(RIDGES, key=lambda ridge: gains[ridge])
    if not gains[best] > 0:
        return torch.zeros_like(seen.cross)
    return seen.plus(held_out).solve(best)


class BlockFit:
    """One block of a model as it is, and the smaller blocks that could stand for it.

    The block is run once; what several smaller ones have in common is worked out once.

    Args:
        block: whole, or narrow already; left as it is.
        now: its sizes.
        index: its number.
        config: of a model around it, the teacher's or a smaller one's.
        calls: what the block is handed in the model as it is; ``output`` is what it is to
            give on the same text: what it gave in the model before the step.
        half: run blocks under bfloat16 autocast; the fits stay in float32 and float64.

    Attributes:
        index: the block's number.
    """

    def __init__(
        self,
        block: nn.Module,
        now: NarrowSizes,
        index: int,
        config: PreTrainedConfig,
        calls: Sequence[BlockCall],
        *,
        half: bool = False,
    ) -> None:
        self._block, self._now, self.index, self._config = block, now, index, config
        self._calls, self._half = calls, half
        self._adapter = family_of(config).adapter
        goal = _rows([call.output for call in calls])
        # The next block's norm takes a row's size away. Unweighted, the few tokens with massive
        # activations (arXiv 2402.17762) would decide alone.
        size = goal.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
        self._goal, self._weights = goal, size.reciprocal()
        self._held_out = torch.arange(len(goal), device=goal.device) % HELD_OUT == HELD_OUT - 1
        self._seen = self._record(block, now)
        self._sums: tuple[Sums, Sums] | None = None

    @torch.no_grad()
    def smaller(self, sizes: NarrowSizes) -> nn.Module:
        """Make a smaller block, in closed form.

        Args:
            sizes: none above the block's own.

        Returns:
            the new block, in evaluation mode, on the block's device and of its number format
        """
        new = narrow_block(self._config, sizes, self.index, self._adapter).eval()
        if not (sizes.heads or sizes.mlp):
            return new
        example = next(self._block.parameters())
        new.to(example.device, example.dtype)
        kept = self._kept(sizes)
        state, own = kept_state(self._block, kept, self._config, self._now), new.state_dict()
        new.load_state_dict({name: value for name, value in state.items() if name in own})
        attention, mlp = self._adapter.writers
        if sizes.heads == self._now.heads and sizes.mlp:
            self._refit(new, mlp, *self._fewer_neurons(kept["neuron"]))
            return new
        if 0 < sizes.heads < self._now.heads and sizes.mlp:
            # What the attention wrote is its goal: the MLP, refitted next, answers for the rest.
            columns = self._columns(kept["head"])
            features = self._seen.features["head"][:, columns]
            lost = self._wrote("head") - features @ self._matrix("head")[columns]
            self._refit(new, attention, *self._split(new, attention, features, lost))
        record = self._record(new, sizes)
        last: UnitKind = "neuron" if sizes.mlp else "head"
        name = mlp if sizes.mlp else attention
        missing = self._goal - record.output
        self._refit(new, name, *self._split(new, name, record.features[last], missing))
        return new

    def _record(self, block: nn.Module, sizes: NarrowSizes) -> "_Record":
        """Run a block on all calls; give what its writers read and what it gives, row by row."""
        names = {
            kind: name
            for kind, name, units in zip(
                KINDS, self._adapter.writers, (sizes.heads, sizes.mlp), strict=True
            )
            if units
        }
        found: dict[UnitKind, list[torch.Tensor]] = {kind: [] for kind in names}
        outputs: list[torch.Tensor] = []
        was_training = block.training
        block.eval()
        handles = [
            block.get_submodule(name).register_forward_pre_hook(
                lambda _, args, kind=kind: found[kind].append(args[0])
            )
            for kind, name in names.items()
        ]
        try:
            kind_of_device = self._calls[0].hidden.device.type
            with (
                torch.no_grad(),
                torch.autocast(kind_of_device, torch.bfloat16, enabled=self._half),
            ):
                for call in self._calls:
                    outputs.append(first_tensor(block(call.hidden, *call.args, **call.kwargs)))
        finally:
            block.train(was_training)
            for handle in handles:
                handle.remove()
        return _Record({kind: _rows(read) for kind, read in found.items()}, _rows(outputs))

    def _matrix(self, kind: UnitKind) -> torch.Tensor:
        writer = self._block.get_submodule(self._adapter.writers[KINDS.index(kind)])
        return _matrix(writer).float()

    def _wrote(self, kind: UnitKind) -> torch.Tensor:
        return self._seen.features[kind] @ self._matrix(kind)

    def _kept(self, sizes: NarrowSizes) -> dict[UnitKind, list[int]]:
        """Choose the units that write most, of each kind as many as stay."""
        share = self._adapter.sharing_heads(self._config)
        counts = {
            "head": (self._now.heads // share, sizes.heads // share),
            "neuron": (self._now.mlp, sizes.mlp),
        }
        kept: dict[UnitKind, list[int]] = {}
        for kind in KINDS:
            units, left = counts[kind]
            kept[kind] = []
            if units:
                read = self._seen.features[kind] * self._weights
                strengths = read.square().sum(0) * self._matrix(kind).square().sum(1)
                each = strengths.reshape(units, -1).sum(1)
                order = sorted(range(units), key=lambda unit: (-float(each[unit]), unit))
                kept[kind] = sorted(order[:left])
        return kept

    def _columns(self, kept: list[int]) -> torch.Tensor:
        """Give the columns of what the attention's writer reads that belong to some units."""
        width = self._seen.features["head"].shape[1]
        units = self._now.heads // self._adapter.sharing_heads(self._config)
        columns = torch.arange(width, device=self._goal.device)
        return columns.reshape(units, -1)[kept].flatten()

    def _split(
        self, block: nn.Module, name: str, features: torch.Tensor, missing: torch.Tensor
    ) -> tuple[Sums, Sums]:
        """Sum up a regression, over the rows that are fitted and over those held out."""
        if getattr(block.get_submodule(name), "bias", None) is not None:
            features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        features, missing = features * self._weights, missing * self._weights
        parts = (~self._held_out, self._held_out)
        seen, held_out = (Sums.of(features[rows], missing[rows]) for rows in parts)
        return seen, held_out

    def _fewer_neurons(self, kept: list[int]) -> tuple[Sums, Sums]:
        """Give the sums for an MLP with some of the neurons, from those with all of them."""
        name, features = self._adapter.writers[1], self._seen.features["neuron"]
        if self._sums is None:
            missing = self._goal - self._seen.output
            self._sums = self._split(self._block, name, features, missing)
        neurons = features.shape[1]
        stay = torch.tensor(kept, device=features.device)
        gone = torch.ones(neurons, dtype=torch.bool, device=features.device)
        gone[stay] = False
        # With a bias there is one more row, which stays.
        rows = torch.cat([stay, torch.arange(neurons, len(self._sums[0].gram), device=stay.device)])
        lost = self._matrix("neuron")[gone]
        parts = [
            Sums(
                sums.gram[rows][:, rows],
                sums.cross[rows] + sums.gram[rows][:, :neurons][:, gone] @ lost,
            )
            for sums in self._sums
        ]
        return parts[0], parts[1]

    @staticmethod
    def _refit(block: nn.Module, name: str, seen: Sums, held_out: Sums) -> None:
        """Have a writer add what comes nearest to what is missing, in place."""
        writer = block.get_submodule(name)
        change = guarded_ridge(seen, held_out)
        matrix = _matrix(writer)
        matrix.add_(change[: len(matrix)].to(matrix.dtype))
        bias = getattr(writer, "bias", None)
        if bias is not None:
            bias.detach().add_(change[-1].to(bias.dtype))


@dataclass(frozen=True)
class _Record:
    """What a block's writers read, (rows, inputs) by kind, and what it gave, (rows, width)."""

    features: dict[UnitKind, torch.Tensor]
    output: torch.Tensor


def _rows(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten(0, 1) for part in parts]).float()


def _matrix(writer: nn.Module) -> torch.Tensor:
    """Give a writer's weight as (inputs, outputs): a linear layer stores (out, in)."""
    weight = writer.weight
    assert isinstance(weight, torch.Tensor)  # noqa: S101 - narrows the type
    weight = weight.detach()
    return weight.T if isinstance(writer, nn.Linear) else weight
