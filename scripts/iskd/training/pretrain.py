"""Train a teacher from scratch."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from iskd.models.scratch import fresh_model, scratch_config
from iskd.runtime.workdir import WorkFolder
from iskd.settings import TrainingSettings
from iskd.training.loop import fine_tune


def pretrain(
    sequences: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    architecture: Mapping[str, Any],
    settings: TrainingSettings,
    *,
    family: str,
    seed: int,
    work: WorkFolder | None = None,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Train a decoder of the given shape.

    Args:
        sequences: tokens, int (sequences, length).
        tokenizer: the tokenizer they were made with.
        architecture: a ``TeacherArchitecture`` section of the config.
        settings: how it is trained.
        family: architecture family of the model.
        seed: seed of its weights and of the order of its data.
        work: where the states of the run are kept.

    Returns:
        the teacher, and its training curve
    """
    config = scratch_config(
        family,
        architecture,
        vocabulary=len(tokenizer),
        positions=architecture["positions"],
        end_token=tokenizer.eos_token_id,
        dropout=architecture["dropout"],
        initializer_range=architecture["initializer_range"],
    )
    model = fresh_model(config, seed)
    return model, fine_tune(model, sequences, settings, seed=seed, work=work)
