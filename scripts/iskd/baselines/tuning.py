"""What baselines that replace no block end in: training on their reference's tokens."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from iskd.data.corpus import load_sequences, step_rows, without_validation
from iskd.models.folder import load_model
from iskd.runtime.job import Job
from iskd.runtime.workdir import WorkFolder
from iskd.settings import TuningSettings
from iskd.training.loop import fine_tune
from iskd.training.publishing import publish_model
from iskd.training.steps import make_objective


def tune(
    model: PreTrainedModel,
    teacher: Callable[[], PreTrainedModel],
    corpus: Tensor,
    settings: TuningSettings,
    *,
    step: int,
    seed: int,
    recorded: Sequence[Path] = (),
    compact: Collection[nn.Module] = (),
    work: WorkFolder | None = None,
) -> list[dict[str, Any]]:
    """Train a baseline's model, in place, on the sequences of the steps 1 to ``step`` at once.

    Args:
        model: the model.
        teacher: gives the teacher, where a term of the objective needs it.
        corpus: its sequences, int (sequences, length).
        settings: the parameters of the baseline.
        step: the reference's step whose tokens are matched.
        seed: seed of the run.
        recorded: what the teacher has said, where the objective asks for it: see
            :func:`iskd.training.steps.make_objective`.
        compact: modules that get the high learning rate.
        work: where the states of the run are kept.

    Returns:
        the training curve
    """
    corpus, _ = without_validation(corpus, settings.validation)
    rows = step_rows(len(corpus), settings.training.sequences, seed=seed, first=1, last=step)
    return fine_tune(
        model,
        corpus[rows],
        settings.training,
        seed=seed,
        compact=compact,
        objective=make_objective(settings.objective, teacher, recorded=recorded, rows=rows),
        work=work,
    )


def tune_and_publish(job: Job, model: PreTrainedModel, compact: Collection[nn.Module] = ()) -> None:
    """Do what the scripts of such baselines end in: :func:`tune` a model, write it and its curve.

    Args:
        job: the rule's run, with the inputs ``teacher`` and ``train`` and the wildcard ``step``.
        model: the model; is changed.
        compact: modules that get the high learning rate.
    """
    history = tune(
        model,
        lambda: load_model(job.folder("teacher")),
        load_sequences(Path(job.inputs["train"])),
        TuningSettings.of(job.params),
        step=int(job.wildcards["step"]),
        seed=job.seed,
        recorded=job.folders("answers"),
        compact=compact,
        work=job.work,
    )
    publish_model(job, model, history)
