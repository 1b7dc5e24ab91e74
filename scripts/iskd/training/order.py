"""A measured order: which block goes next, by what its replacement costs before any training."""

import logging
from collections.abc import Callable

import torch
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
) -> tuple[int, dict[str, float]]:
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
        its index, and the loss in nats with each block replaced
    """

    def measured() -> dict[str, float]:
        losses = _losses(
            model, teacher, sizes, sequences, settings, validation=validation, seed=seed
        )
        return {str(index): loss for index, loss in losses.items()}

    if work is None:
        losses = measured()
    else:
        conditions = bits_depend_on(model.device)
        losses = work.remember("order", measured, keep=world().first, **conditions)
    return min((loss, int(index)) for index, loss in losses.items())[1], losses


def _losses(
    model: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    sizes: Sizes,
    sequences: torch.Tensor,
    settings: StepSettings,
    *,
    validation: torch.Tensor,
    seed: int,
) -> dict[int, float]:
    changed, start = ChangedBlocks.of(model.config), settings.start
    blocks, size = range(model.config.num_hidden_layers), settings.training.batch_size
    left = [i for i in blocks if i not in changed.compact and i not in changed.narrow]
    half = settings.training.precision == "bfloat16"
    walk = BlockWalk(model, validation, size, half=half)
    example: BlockWalk | None = None
    if start.initialisation in NEEDS_ACTIVATIONS:
        example = BlockWalk(teacher(), sequences[: start.calibration], size)
    losses: dict[int, float] = {}
    progress = bar(len(left), "measuring")
    for index in blocks[: left[-1] + 1]:
        if index in left:
            calls = example.calls() if example else []
            trial = trial_block(model, index, sizes, start.initialisation, seed, calls=calls)
            losses[index] = walk.loss(trial)
            log.info("block %d replaced: loss %.4f", index, losses[index])
            progress.update()
        for way in (walk, example):
            if way is not None:
                way.advance()
    progress.close()
    return losses
