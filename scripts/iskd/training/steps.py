"""Substitution and fine-tuning together: one step of ISKD, and all blocks at once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from iskd.data.corpus import step_sequences
from iskd.errors import UserError
from iskd.models.activations import BlockCall, all_calls
from iskd.models.families import family_of
from iskd.models.initialisation import NEEDS_ACTIVATIONS
from iskd.models.modeling.iskd_blocks import ChangedBlocks
from iskd.models.recipes import Sizes
from iskd.models.substitution import replace_block, replace_blocks
from iskd.runtime.workdir import WorkFolder
from iskd.training.curve import joined
from iskd.training.loop import fine_tune
from iskd.training.objectives import Objective, make_objective, next_token_loss
from iskd.training.optimizer import published_groups
from iskd.training.theseus import StochasticBlocks
from iskd.training.warm_start import warm_start

log = logging.getLogger("iskd.training")


@dataclass
class Outcome:
    """What a substitution gave: the model, its training curve, and what was decided on the way."""

    model: PreTrainedModel
    history: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)


def objective_of(
    spec: Mapping[str, Any], teacher: Callable[[], PreTrainedModel], *, mask: bool = False
) -> Objective:
    """Make the loss that an arm's section ``objective`` asks for.

    Args:
        spec: the section; ``temperature`` may be left out where there is no ``kl``.
        teacher: gives the teacher; is asked only where the objective listens to it.
        mask: hand the model a mask of ones, as the published code does.
    """
    listened = teacher() if spec["kl"] or spec["hidden"] else None
    precision = spec.get("teacher_precision", "float32")
    if listened is not None and precision != "float32":
        listened.to(getattr(torch, precision))
    weights = {key: spec[key] for key in ("next_token", "kl", "hidden")}
    return make_objective(
        {**weights, "temperature": spec.get("temperature", 1.0)},  # type: ignore[typeddict-item]
        listened,
        mask=mask,
    )


def without_validation(
    blocks: torch.Tensor, spec: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Part what is trained on from what a measured order is measured on.

    The sequences that decide on the order are not trained on, nor are they by a baseline that
    shall see the tokens of such an arm.

    Args:
        blocks: the corpus's sequences, int (sequences, length).
        spec: ``validation`` says how many are set aside, from the end; left out, none.

    Raises:
        UserError: nothing is left to train on.
    """
    count = spec.get("validation", 0)
    if count >= len(blocks):
        raise UserError(
            f"validation takes {count} sequences, the corpus has {len(blocks)}; lower validation "
            f"or give more text"
        )
    kept = len(blocks) - count
    return blocks[:kept], blocks[kept:]


def substitute_block(
    previous: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    sizes: Sizes,
    blocks: torch.Tensor,
    spec: Mapping[str, Any],
    *,
    step: int,
    seed: int,
    work: WorkFolder | None = None,
) -> Outcome:
    """Replace one block and fine-tune the whole model: one step of ISKD.

    Args:
        previous: the model of the step before.
        teacher: gives the teacher, when it is listened to.
        sizes: of the new block.
        blocks: the corpus's sequences, int (sequences, length).
        spec: what ``StudyPlan.substitution_spec`` gave.
        step: number of the step, from 1.
        seed: seed of the run; each step draws numbers of its own.
        work: where the states of the fine-tuning are kept.
    """
    own_seed = seed * 1000 + step
    facts: dict[str, Any] = {}
    blocks, validation = without_validation(blocks, spec)
    sequences = step_sequences(
        blocks, spec["training"]["sequences"], seed=seed, first=step, last=step
    )
    index = spec["block"]
    if index is None:
        index, facts["loss_if_replaced"] = _measure(
            previous, teacher, sizes, sequences, spec, validation=validation, seed=own_seed
        )
    calls = _calls(teacher, [index], sequences, spec)
    model, block = replace_block(
        previous, index, sizes, spec["initialisation"], own_seed, calls=calls[index]
    )
    head, sequences = _share(sequences, spec["warm_start"])
    warm: list[dict[str, Any]] = []
    if len(head):
        warm = warm_start(block, teacher(), index, head, spec["training"], seed=own_seed)
    published = spec["as_published"]
    history = fine_tune(
        model,
        sequences,
        spec["training"],
        seed=own_seed,
        new=[block],
        objective=objective_of(spec["objective"], teacher, mask=published),
        groups=_published_groups(model, index, spec["training"]) if published else None,
        work=work,
    )
    facts |= {"block": index, "parameters": model.num_parameters()}
    return Outcome(model, joined(warm, history), facts)


def substitute_at_once(
    teacher: Callable[[], PreTrainedModel],
    sizes: Sizes,
    blocks: torch.Tensor,
    spec: Mapping[str, Any],
    *,
    step: int,
    seed: int,
    work: WorkFolder | None = None,
) -> Outcome:
    """Replace all blocks at once, then fine-tune on the tokens of as many steps.

    With ``first`` and ``curriculum`` in the spec the replacement is stochastic at first
    (BERT-of-Theseus, arXiv 2002.02925).

    Args:
        teacher: gives a fresh copy of the teacher.
        sizes: of the new blocks.
        blocks: the corpus's sequences, int (sequences, length).
        spec: what ``StudyPlan.baseline_spec`` gave.
        step: the reference's step whose tokens are matched.
        seed: seed of the run.
        work: where the states of the fine-tuning are kept.
    """
    blocks, _ = without_validation(blocks, spec)
    sequences = step_sequences(blocks, spec["training"]["sequences"], seed=seed, first=1, last=step)
    whole, indices = teacher(), spec["replaced"]
    calls = _calls(teacher, indices, sequences, spec)
    model, new = replace_blocks(
        whole, dict.fromkeys(indices, sizes), spec["initialisation"], seed, calls=calls
    )
    originals = {index: family_of(whole.config).blocks(whole)[index] for index in indices}
    head, sequences = _share(sequences, spec["warm_start"])
    phases = []
    for index, part in zip(indices, head.tensor_split(len(indices)), strict=True):
        if len(part):
            phases.append(
                warm_start(new[index], teacher(), index, part, spec["training"], seed=seed + index)
            )
    objective = objective_of(spec["objective"], teacher)

    def tune(on_step: Any = None) -> list[dict[str, Any]]:
        return fine_tune(
            model,
            sequences,
            spec["training"],
            seed=seed,
            new=list(new.values()),
            objective=objective,
            on_step=on_step,
            work=work,
        )

    if "curriculum" in spec:
        with StochasticBlocks(
            model, originals, first=spec["first"], curriculum=spec["curriculum"], seed=seed
        ) as replacement:
            history = tune(replacement.step)
    else:
        history = tune()
    facts = {"blocks": indices, "parameters": model.num_parameters()}
    return Outcome(model, joined(*phases, history), facts)


def _calls(
    teacher: Callable[[], PreTrainedModel],
    indices: Sequence[int],
    sequences: torch.Tensor,
    spec: Mapping[str, Any],
) -> dict[int, list[BlockCall]]:
    """Listen to the teacher's blocks where the new ones' start is fitted to them."""
    if spec["initialisation"] not in NEEDS_ACTIVATIONS:
        return {index: [] for index in indices}
    size = spec["training"]["batch_size"]
    heard = list(all_calls(teacher(), indices, sequences[: spec["calibration"]], size))
    return {index: [calls[index] for calls in heard] for index in indices}


def _share(sequences: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    count = round(share * len(sequences))
    if count >= len(sequences):
        raise UserError(
            f"warm_start {share:g} takes all {len(sequences)} sequences of the step and leaves "
            f"none for the whole model; lower it"
        )
    return sequences[:count], sequences[count:]


def _measure(
    model: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    sizes: Sizes,
    sequences: torch.Tensor,
    spec: Mapping[str, Any],
    *,
    validation: torch.Tensor,
    seed: int,
) -> tuple[int, dict[str, float]]:
    """Find the block whose replacement, before any training, raises the loss least.

    Returns:
        its index, and the loss in nats with each block replaced
    """
    changed = ChangedBlocks.of(model.config)
    done = {*changed.compact, *changed.narrow}
    left = [i for i in range(model.config.num_hidden_layers) if i not in done]
    calls = _calls(teacher, left, sequences, spec)
    losses: dict[int, float] = {}
    for index in left:
        tried, _ = replace_block(
            model, index, sizes, spec["initialisation"], seed, calls=calls[index]
        )
        losses[index] = _mean_loss(tried, validation, spec["training"]["batch_size"])
        log.info("block %d replaced: loss %.4f", index, losses[index])
    best = min(left, key=lambda index: (losses[index], index))
    return best, {str(index): loss for index, loss in losses.items()}


@torch.no_grad()
def _mean_loss(model: PreTrainedModel, sequences: torch.Tensor, size: int) -> float:
    model.eval()
    total = sum(
        float(next_token_loss(model, {"input_ids": part.long().to(model.device)})) * len(part)
        for part in sequences.split(size)
    )
    return total / len(sequences)


def _published_groups(
    model: nn.Module, index: int, training: Mapping[str, Any]
) -> list[dict[str, Any]]:
    assert isinstance(model, PreTrainedModel)  # noqa: S101 - narrows the type
    return published_groups(
        model,
        f"{family_of(model.config).adapter.blocks_path}.{index}",
        rate_new=training["learning_rate"]["compact"],
        rate_rest=training["learning_rate"]["rest"],
        weight_decay=training["weight_decay"],
    )
