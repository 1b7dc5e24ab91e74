"""A measured order: which block goes next, by what its replacement costs before any training.

The blocks compete in rounds, after the successive halving of Karnin, Koren and Somekh (2013,
"Almost optimal exploration in multi-armed bandits"), but that a third goes on: all of them on an
eighth of the validation text, the best third of these on as much again, a third of that third on
twice as much, until the last two have seen all of it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.models.initialisation import NEEDS_ACTIVATIONS
from iskd.models.modeling.iskd_blocks import ChangedBlocks
from iskd.models.recipes import Sizes
from iskd.models.substitution import trial_block
from iskd.progress import bar
from iskd.provenance.machine import bits_depend_on
from iskd.runtime.distributed import world
from iskd.runtime.workdir import WorkFolder
from iskd.settings import StepSettings
from iskd.training.trials import BlockWalk

log = logging.getLogger("iskd.training")

DOUBLINGS = 3
"""Times that the text is doubled; the first round sees 1 / 2^DOUBLINGS of it."""

KEPT = 3
"""One in so many candidates goes on to the next round.

The first round is half of the work already. Halves would add as much again for what 4 sequences
have put far behind, and a step's order should cost less than half of its training.
"""

FEWEST = 4
"""Sequences that the first round has at least; below this the noise would choose."""


def rounds(validation: int, candidates: int) -> list[tuple[int, int]]:
    """Say how a measured order goes about: for each round, how much text and how many candidates.

    Args:
        validation: sequences there are.
        candidates: how many compete.

    Returns:
        (sequences seen by the end of the round, candidates in it); all sequences by the last one,
        and never less than two candidates where there are two
    """
    first = min(validation, max(FEWEST, -(-validation // 2**DOUBLINGS)))
    made = [(first, candidates)]
    while made[-1][0] < validation:
        seen, left = made[-1]
        made.append((min(validation, 2 * seen), min(candidates, max(2, -(-left // KEPT)))))
    return made


def cheapest_block(
    model: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    sizes: Sizes,
    sequences: torch.Tensor,
    settings: StepSettings,
    *,
    validation: torch.Tensor,
    seed: int,
    work: WorkFolder | None = None,
) -> tuple[int, dict[str, Any]]:
    """Find the block whose replacement, before any training, raises the loss least.

    What was measured is kept with the states of the training, so that an attempt that goes on
    from there does not measure again.

    Args:
        model: the model of the step before.
        teacher: gives the teacher, where a replacement's start is fitted to its blocks.
        sizes: of the compact block.
        sequences: of the step, int (sequences, length); the first ones are what a start is fitted
            on.
        settings: what the step is asked.
        validation: sequences that the loss is measured on, int (sequences, length).
        seed: seed of what a start draws.
        work: the job's work folder.

    Returns:
        its index, and by block ``loss_if_replaced``, in nats, and ``measured_on``, the number of
        sequences that this is a mean over: all of them for those that came to the last round
    """

    def measured() -> dict[str, Any]:
        return _compete(
            model, teacher, sizes, sequences, settings, validation=validation, seed=seed
        )

    if work is None:
        facts = measured()
    else:
        conditions = bits_depend_on(model.device)
        facts = work.remember("order", measured, keep=world().first, **conditions)
    last = max(facts["measured_on"].values())
    finalists = [index for index, seen in facts["measured_on"].items() if seen == last]
    losses = facts["loss_if_replaced"]
    return min((losses[index], int(index)) for index in finalists)[1], facts


def _compete(
    model: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    sizes: Sizes,
    sequences: torch.Tensor,
    settings: StepSettings,
    *,
    validation: torch.Tensor,
    seed: int,
) -> dict[str, Any]:
    changed = ChangedBlocks.of(model.config)
    blocks, size = range(model.config.num_hidden_layers), settings.training.batch_size
    left = [i for i in blocks if i not in changed.compact and i not in changed.narrow]
    half = settings.training.precision == "bfloat16"
    trials = _Trials(model, teacher, sizes, sequences, settings=settings, seed=seed)
    sums, seen = dict.fromkeys(left, 0.0), dict.fromkeys(left, 0)
    plan = rounds(len(validation), len(left))
    progress = bar(sum(count for _, count in plan), "measuring")
    start = 0
    for end, count in plan:
        left = sorted(sorted(left, key=lambda i: (sums[i] / max(1, seen[i]), i))[:count])
        walk = BlockWalk(model, validation[start:end], size, half=half)
        with walk.weights_cast_once():
            for index in range(left[-1] + 1):
                if index in left:
                    with walk.precisely():
                        trial = trials.at(index)
                    sums[index] += walk.loss(trial) * (end - start)
                    seen[index] = end
                    progress.update()
                walk.advance()
        trials.keep(left)
        start = end
    progress.close()
    means = {index: total / seen[index] for index, total in sums.items()}
    for index, mean in means.items():
        log.info("block %d replaced: loss %.4f on %d sequences", index, mean, seen[index])
    return {
        "loss_if_replaced": {str(index): mean for index, mean in means.items()},
        "measured_on": {str(index): count for index, count in seen.items()},
    }


class _Trials:
    """The replacements that compete: each is made once, in the first round, and kept while in."""

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: Callable[[], PreTrainedModel],
        sizes: Sizes,
        sequences: torch.Tensor,
        *,
        settings: StepSettings,
        seed: int,
    ) -> None:
        self._model, self._sizes, self._seed = model, sizes, seed
        self._start = settings.start
        self._made: dict[int, nn.Module] = {}
        self._example: BlockWalk | None = None
        if self._start.initialisation in NEEDS_ACTIVATIONS:
            self._example = BlockWalk(
                teacher(),
                sequences[: self._start.calibration],
                settings.training.batch_size,
                half=settings.training.precision == "bfloat16",
            )

    def at(self, index: int) -> nn.Module:
        """Give the replacement of a block; in the first round, blocks come in their order."""
        if index not in self._made:
            calls = []
            if self._example is not None:
                while self._example.index < index:
                    self._example.advance()
                calls = self._example.calls()
            self._made[index] = trial_block(
                self._model, index, self._sizes, self._start.initialisation, self._seed, calls=calls
            )
        return self._made[index]

    def keep(self, left: Sequence[int]) -> None:
        """Let all others go, and what they were fitted to."""
        self._example = None
        self._made = {index: self._made[index] for index in left}
