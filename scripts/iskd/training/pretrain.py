"""Train a teacher from scratch."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iskd.models.scratch import fresh_model, scratch_config
from iskd.runtime.workdir import WorkFolder
from iskd.training.loop import fine_tune


def pretrain(
    blocks: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    spec: dict[str, Any],
    *,
    work: WorkFolder | None = None,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Train a decoder of the asked shape with AdamW.

    Args:
        blocks: token sequences, int (sequences, length).
        tokenizer: the tokenizer they were made with.
        spec: family, ``TeacherArchitecture`` and ``Pretraining`` sections of the config.
        work: where the states of the run are kept.

    Returns:
        the teacher, and its training curve
    """
    shape, settings = spec["architecture"], spec["pretraining"]
    config = scratch_config(
        spec["family"],
        shape,
        vocabulary=len(tokenizer),
        positions=shape["positions"],
        end_token=tokenizer.eos_token_id,
        dropout=shape["dropout"],
        initializer_range=shape["initializer_range"],
    )
    rate = settings["learning_rate"]
    model = fresh_model(config, settings["seed"])
    history = fine_tune(
        model,
        blocks,
        {**settings, "optimizer": "adamw", "learning_rate": {"compact": rate, "rest": rate}},
        seed=settings["seed"],
        work=work,
    )
    return model, history
