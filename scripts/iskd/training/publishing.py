"""What every rule that trains a model writes: the model, its training curve, its size."""

from typing import Any

from transformers import PreTrainedModel

from iskd.models.folder import load_tokenizer, save_model
from iskd.runtime.job import Job
from iskd.training.curve import write_history


def publish_model(job: Job, model: PreTrainedModel, history: list[dict[str, Any]]) -> None:
    """Write a model that was made of a teacher, and its training curve, into a job's folder.

    Args:
        job: with the input ``teacher``, whose tokenizer and number format are the model's, and the
            parameters ``save_precision`` and perhaps ``keep_master``: see ``save_model``.
        model: the model; it has the published number format afterwards.
        history: its training curve.
    """
    save_model(
        model,
        load_tokenizer(job.folder("teacher")),
        job.out,
        like=job.folder("teacher"),
        precision=job.params["save_precision"],
        keep_master=job.params.get("keep_master", False),
    )
    write_history(history, job.out / "history.jsonl")
    job.summary |= {"parameters": model.num_parameters()}
