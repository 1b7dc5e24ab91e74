"""What every baseline does in the end: train on the tokens of its reference, and save."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from iskd.data.corpus import step_sequences
from iskd.training.loop import fine_tune
from iskd.training.state import WorkFolder
from iskd.training.steps import objective_of, without_validation


def tune(
    model: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    blocks: Tensor,
    spec: Mapping[str, Any],
    *,
    step: int,
    seed: int,
    new: Collection[nn.Module] = (),
    work: WorkFolder | None = None,
) -> list[dict[str, Any]]:
    """Train a baseline's model, in place, on the sequences of the steps 1 to ``step`` at once.

    Args:
        model: the model.
        teacher: gives the teacher, when the objective listens to it.
        blocks: the corpus's sequences, int (sequences, length).
        spec: ``training``, and perhaps ``objective`` and ``validation``.
        step: the reference's step whose tokens are matched.
        seed: seed of the run.
        new: modules that get the high learning rate.
        work: where the states of the run are kept.

    Returns:
        the training curve
    """
    blocks, _ = without_validation(blocks, spec)
    objective = spec.get("objective", {"next_token": 1.0, "kl": 0.0, "hidden": 0.0})
    listened = teacher() if objective["kl"] or objective["hidden"] else None
    return fine_tune(
        model,
        step_sequences(blocks, spec["training"]["sequences"], seed=seed, first=1, last=step),
        spec["training"],
        seed=seed,
        new=new,
        objective=objective_of(objective, listened),
        work=work,
    )
