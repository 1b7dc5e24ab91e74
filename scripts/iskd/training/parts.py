"""One step of recipe ``parts``: measured changes up to the step's budget, then fine-tuning."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from iskd.data.corpus import step_rows, without_validation
from iskd.models.modeling.iskd_blocks import NarrowSizes
from iskd.models.planning import parameters_after
from iskd.models.substitution import settle_blocks
from iskd.provenance.machine import bits_depend_on
from iskd.runtime.distributed import world
from iskd.runtime.workdir import WorkFolder
from iskd.settings import ChangeKind, ChoiceKind, ReplacementSettings, SizeRequest
from iskd.training.budgeted import BudgetedChooser
from iskd.training.choice import Chooser, Texts
from iskd.training.loop import fine_tune
from iskd.training.steps import Outcome, make_objective

SUBSTITUTION = "substitution.json"
"""The file of a step's folder that holds what it has done."""


@dataclass(frozen=True)
class Budget:
    """What a step is to come to.

    Attributes:
        parameters: most that the model may have after it.
        least: fewest that it may have, to within one neuron: those after the headline step.
        changes: the kinds of changes that are candidates.
        choice: how they are chosen.
    """

    parameters: int
    least: int
    changes: tuple[ChangeKind, ...]
    choice: ChoiceKind = "measured"

    @classmethod
    def of(cls, config: PreTrainedConfig, request: SizeRequest, step: int) -> Self:
        """Work out a step's budget; no step goes beyond what the last one is to come to.

        Args:
            config: the teacher's.
            request: what the study asks for.
            step: number of the step, from 1.

        Raises:
            UserError: sizes that do not fit, or a reduction out of reach.
        """
        left, end = (parameters_after(config, request, k) for k in (step, request.replaced))
        return cls(
            left,
            least=min(left, end),
            changes=request.changes or (),
            choice=request.choice or "measured",
        )


def earlier_scores(previous: Path) -> dict[str, float]:
    """Read the scores that the step before has left in its folder; a teacher's has none."""
    file = previous / SUBSTITUTION
    if not file.is_file():
        return {}
    scores: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["scores"]
    return scores


def substitute_parts(
    previous: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    budget: Budget,
    corpus: torch.Tensor,
    settings: ReplacementSettings,
    *,
    known: Mapping[str, float],
    step: int,
    seed: int,
    first: int | None = None,
    recorded: Sequence[Path] = (),
    work: WorkFolder | None = None,
) -> Outcome:
    """Make the changes that cost least, up to a budget, and fine-tune the whole model.

    What was chosen is kept with the states of the training: a further attempt makes the same
    changes, to the same bits, and measures nothing.

    Args:
        previous: the model of the step before; its blocks are swapped in place.
        teacher: gives the teacher.
        budget: of the step.
        corpus: its sequences, int (sequences, length).
        settings: the parameters of the step.
        known: the scores of the step before, by change.
        step: number of the step, from 1.
        seed: seed of the run; each step draws numbers of its own.
        first: the first step whose sequences are trained on; left out, the step alone.
        recorded: what the teacher has said, where the objective asks for it: see
            :func:`make_objective`.
        work: where the choice and the states of the fine-tuning are kept.

    Returns:
        the model, its curve, and as facts ``changes`` (see :meth:`Chooser.take`), ``scores``
        for the step after, ``block`` (the first one changed, None where none was) and
        ``parameters``

    Raises:
        UserError: the budget cannot be met with these kinds of changes.
    """
    own_seed = seed * 1000 + step
    training = settings.training
    corpus, validation = without_validation(corpus, settings.validation)
    first = step if first is None else first
    rows = step_rows(len(corpus), training.sequences, seed=seed, first=first, last=step)
    sequences = corpus[rows]
    texts = Texts(
        sequences[: settings.start.calibration],
        validation,
        training.batch_size,
        half=training.precision == "bfloat16",
    )
    chooser_of = BudgetedChooser if budget.choice == "budgeted" else Chooser
    chooser = chooser_of(previous, teacher(), texts, budget.changes, known)
    measured = False

    def choose() -> dict[str, Any]:
        nonlocal measured
        measured = True
        taken = chooser.take(budget.parameters, least=budget.least)
        return {"changes": taken, "scores": chooser.scores}

    if work is None:
        facts = choose()
    else:
        conditions = bits_depend_on(previous.device)
        facts = work.remember("choice", choose, keep=world().first, **conditions)
    if not measured:
        chooser.repeat(facts["changes"])
    sizes = {row["block"]: NarrowSizes(row["heads"], row["mlp"]) for row in facts["changes"]}
    model, blocks = settle_blocks(previous, sizes)
    history = fine_tune(
        model.train(),
        sequences,
        training,
        seed=own_seed,
        compact=list(blocks.values()),
        objective=make_objective(settings.objective, teacher, recorded=recorded, rows=rows),
        work=work,
    )
    block = facts["changes"][0]["block"] if facts["changes"] else None
    return Outcome(model, history, {**facts, "block": block, "parameters": model.num_parameters()})
