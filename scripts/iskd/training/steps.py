"""Substitution and fine-tuning together: one step of ISKD, and all blocks at once."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from iskd.data.corpus import step_rows, without_validation
from iskd.errors import UserError
from iskd.models.activations import BlockCall, all_calls
from iskd.models.families import family_of
from iskd.models.initialisation import NEEDS_ACTIVATIONS
from iskd.models.recipes import Sizes
from iskd.models.substitution import replace_block, replace_blocks
from iskd.runtime.workdir import WorkFolder
from iskd.settings import (
    AtOnceSettings,
    ObjectiveSettings,
    ReplacementSettings,
    StepSettings,
)
from iskd.training.curve import joined
from iskd.training.loop import fine_tune
from iskd.training.objectives import Mixture, Objective
from iskd.training.optimizer import parameter_groups, published_groups
from iskd.training.order import cheapest_block
from iskd.training.teacher_cache import TeacherCache
from iskd.training.theseus import StochasticBlocks
from iskd.training.warm_start import warm_start


@dataclass
class Outcome:
    """What a substitution gave: the model, its training curve, and what was decided on the way."""

    model: PreTrainedModel
    history: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


def make_objective(
    settings: ObjectiveSettings,
    teacher: Callable[[], PreTrainedModel],
    *,
    recorded: Sequence[Path] = (),
    rows: torch.Tensor | None = None,
    mask: bool = False,
) -> Objective:
    """Make the loss that an arm's section ``objective`` asks for.

    Args:
        settings: the section.
        teacher: gives the teacher; called only where a term needs it.
        recorded: the artifacts of ``record_teacher``, where the section asks for a cache.
        rows: which sequences of the corpus are trained on, int64 (sequences,).
        mask: hand the model a mask of ones, as the published code does.
    """
    if not settings.needs_teacher:
        return Mixture(settings, mask=mask)
    if settings.recorded and rows is not None:
        return Mixture(settings, cache=TeacherCache(recorded, rows), mask=mask)
    frozen = teacher()
    if settings.teacher_precision != "float32":
        frozen.to(getattr(torch, settings.teacher_precision))
    return Mixture(settings, frozen, mask=mask)


def substitute_block(
    previous: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    sizes: Sizes,
    corpus: torch.Tensor,
    settings: StepSettings,
    *,
    step: int,
    seed: int,
    recorded: Sequence[Path] = (),
    work: WorkFolder | None = None,
) -> Outcome:
    """Replace one block and fine-tune the whole model: one step of ISKD.

    Args:
        previous: the model of the step before.
        teacher: gives the teacher, where something compares with it.
        sizes: of the compact block.
        corpus: its sequences, int (sequences, length).
        settings: the parameters of the step.
        step: number of the step, from 1.
        seed: seed of the run; each step draws numbers of its own.
        recorded: what the teacher has said, where the objective asks for it: see
            :func:`make_objective`.
        work: where the states of the fine-tuning are kept.
    """
    own_seed = seed * 1000 + step
    facts: dict[str, Any] = {}
    training = settings.training
    corpus, validation = without_validation(corpus, settings.validation)
    rows = step_rows(len(corpus), training.sequences, seed=seed, first=step, last=step)
    sequences = corpus[rows]
    index = settings.block
    if index is None:
        index, facts = cheapest_block(
            previous,
            teacher,
            sizes,
            sequences,
            settings,
            validation=validation,
            seed=own_seed,
            work=work,
        )
    calls = _calls(teacher, [index], sequences, settings)
    model, block = replace_block(
        previous, index, sizes, settings.start.initialisation, own_seed, calls=calls[index]
    )
    head, sequences = _share(sequences, settings.warm_start)
    warm: list[dict[str, Any]] = []
    if len(head):
        warm = warm_start(block, teacher(), index, head, training, seed=own_seed, work=work)
    history = fine_tune(
        model,
        sequences,
        training,
        seed=own_seed,
        compact=[block],
        objective=make_objective(
            settings.objective,
            teacher,
            recorded=recorded,
            rows=rows[len(head) :],
            mask=settings.as_published,
        ),
        grouping=published_groups if settings.as_published else parameter_groups,
        work=work,
    )
    facts |= {"block": index, "parameters": model.num_parameters()}
    return Outcome(model, joined(warm, history), facts)


def substitute_at_once(
    teacher: Callable[[], PreTrainedModel],
    sizes: Sizes,
    corpus: torch.Tensor,
    settings: AtOnceSettings,
    *,
    step: int,
    seed: int,
    recorded: Sequence[Path] = (),
    work: WorkFolder | None = None,
) -> Outcome:
    """Replace all blocks at once, then fine-tune on the tokens of as many steps.

    With ``first`` and ``curriculum`` in the settings the replacement is stochastic at first
    (BERT-of-Theseus, arXiv 2002.02925).

    Args:
        teacher: gives a fresh copy of the teacher.
        sizes: of the compact blocks.
        corpus: its sequences, int (sequences, length).
        settings: the parameters of the job.
        step: the reference's step whose tokens are matched.
        seed: seed of the run.
        recorded: as in :func:`substitute_block`.
        work: where the states of the fine-tuning are kept.
    """
    training, indices = settings.training, settings.blocks
    assert indices is not None  # noqa: S101 - only recipe parts measures them
    corpus, _ = without_validation(corpus, settings.validation)
    rows = step_rows(len(corpus), training.sequences, seed=seed, first=1, last=step)
    sequences = corpus[rows]
    whole = teacher()
    calls = _calls(teacher, indices, sequences, settings)
    model, compact = replace_blocks(
        whole, dict.fromkeys(indices, sizes), settings.start.initialisation, seed, calls=calls
    )
    originals = {index: family_of(whole.config).blocks(whole)[index] for index in indices}
    head, sequences = _share(sequences, settings.warm_start)
    phases = []
    for index, part in zip(indices, head.tensor_split(len(indices)), strict=True):
        if len(part):
            phases.append(
                warm_start(
                    compact[index], teacher(), index, part, training, seed=seed + index, work=work
                )
            )
    objective = make_objective(
        settings.objective, teacher, recorded=recorded, rows=rows[len(head) :]
    )
    with ExitStack() as stack:
        on_update = None
        if settings.first is not None and settings.curriculum is not None:
            replacement = StochasticBlocks(
                model, originals, first=settings.first, curriculum=settings.curriculum, seed=seed
            )
            on_update = stack.enter_context(replacement).draw
        history = fine_tune(
            model,
            sequences,
            training,
            seed=seed,
            compact=list(compact.values()),
            objective=objective,
            on_update=on_update,
            work=work,
        )
    facts = {"blocks": indices, "parameters": model.num_parameters()}
    return Outcome(model, joined(*phases, history), facts)


def _calls(
    teacher: Callable[[], PreTrainedModel],
    indices: Sequence[int],
    sequences: torch.Tensor,
    settings: ReplacementSettings,
) -> dict[int, list[BlockCall]]:
    """Record the calls of the teacher's blocks where the compact ones' start is fitted to them."""
    if settings.start.initialisation not in NEEDS_ACTIVATIONS:
        return {index: [] for index in indices}
    size = settings.training.batch_size
    calibration = sequences[: settings.start.calibration]
    recorded = list(all_calls(teacher(), indices, calibration, size))
    return {index: [calls[index] for calls in recorded] for index in indices}


def _share(sequences: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    count = round(share * len(sequences))
    if count >= len(sequences):
        raise UserError(
            f"warm_start {share:g} takes all {len(sequences)} sequences of the step and leaves "
            f"none for the whole model; lower it"
        )
    return sequences[:count], sequences[count:]
