"""What baselines that replace no block do in the end: train on their reference's tokens, save."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from iskd.data.corpus import load_blocks, step_sequences
from iskd.models.folder import load_model, load_tokenizer, save_model
from iskd.runtime.workdir import WorkFolder
from iskd.training.curve import write_history
from iskd.training.loop import fine_tune
from iskd.training.steps import objective_of, without_validation

if TYPE_CHECKING:
    from iskd.runtime.job import Job


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
    return fine_tune(
        model,
        step_sequences(blocks, spec["training"]["sequences"], seed=seed, first=1, last=step),
        spec["training"],
        seed=seed,
        new=new,
        objective=objective_of(objective, teacher),
        work=work,
    )


def tune_and_save(job: "Job", model: PreTrainedModel, new: Collection[nn.Module] = ()) -> None:
    """Do what the scripts of such baselines end in: :func:`tune` a model, save it and its curve.

    Args:
        job: the rule's run, with the inputs ``teacher`` and ``train`` and the wildcard ``step``.
        model: the model; is changed.
        new: modules that get the high learning rate.
    """
    history = tune(
        model,
        lambda: load_model(job.folder("teacher")),
        load_blocks(Path(job.inputs["train"])),
        job.params["spec"],
        step=int(job.wildcards["step"]),
        seed=job.seed,
        new=new,
        work=job.work,
    )
    save_model(
        model,
        load_tokenizer(job.folder("teacher")),
        job.out,
        like=job.folder("teacher"),
        precision=job.params["spec"]["save_precision"],
    )
    write_history(history, job.out / "history.jsonl")
    job.summary |= {"parameters": model.num_parameters()}
