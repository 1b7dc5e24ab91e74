"""Knowledge distillation: a smaller student of the teacher's family, from fresh weights."""

from typing import Any

from transformers import PreTrainedModel

from iskd.models.families import family_of
from iskd.models.scratch import fresh_model, scratch_config


def make_student(teacher: PreTrainedModel, shape: dict[str, Any], seed: int) -> PreTrainedModel:
    """Make a student with the teacher's family, vocabulary and positions and its own shape.

    Args:
        teacher: the model to be distilled.
        shape: a ``Student`` section of the config: blocks, width, heads, mlp.
        seed: seed of the student's weights.
    """
    config = scratch_config(
        family_of(teacher.config).name,
        shape,
        vocabulary=teacher.config.vocab_size,
        positions=teacher.config.max_position_embeddings,
        end_token=teacher.config.eos_token_id,
    )
    student = fresh_model(config, seed).to(teacher.device)
    student.generation_config = teacher.generation_config
    return student
