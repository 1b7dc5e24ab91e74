"""Knowledge distillation: a smaller student of the teacher's family."""

import copy
from typing import Any, Literal

from transformers import PreTrainedConfig, PreTrainedModel

from iskd.baselines.blocks import fitting_blocks, keep_blocks, kept_config, require_whole, spread
from iskd.errors import UserError
from iskd.models.families import family_of
from iskd.models.recipes import head_grain
from iskd.models.scratch import fresh_model

Start = Literal["scratch", "alternate"]


def make_student(
    teacher: PreTrainedModel,
    reference_parameters: int,
    *,
    start: Start,
    shape: dict[str, Any] | None,
    seed: int,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Make a plain model of the teacher's family, with its vocabulary and positions.

    Args:
        teacher: the model to be distilled; left as it is.
        reference_parameters: what the student is compared with; without a shape of its own it is
            as large as whole blocks of the teacher's shape allow within them.
        start: ``scratch`` draws all weights; ``alternate`` takes blocks of the teacher, spread
            evenly from its first to its last, and its embeddings, final norm and head (as
            DistilBERT, arXiv 1910.01108, section 3, and DistilGPT2 do).
        shape: a ``Student`` section of the config: blocks, width, heads, mlp, kv_heads; only for
            ``scratch``. All else (activation, rotary base, tied embeddings) is the teacher's.
        seed: seed of fresh weights.

    Returns:
        the student, and what is to be recorded of it: ``start``, ``blocks`` (how many), ``taken``
        (the teacher's blocks that it starts from; empty from scratch) and ``parameters``

    Raises:
        UserError: not even one block fits, the shape does not fit the family or ``start``, or
            the teacher is compressed already.
    """
    require_whole(teacher.config, "distillation")
    taken: list[int] = []
    if start == "alternate":
        if shape is not None:
            raise UserError(
                "a student that starts from the teacher's alternate blocks has the teacher's "
                "shape: leave out shape, or use start: scratch"
            )
        fitting = fitting_blocks(teacher.config, reference_parameters)
        taken = spread(fitting, teacher.config.num_hidden_layers)
        student = keep_blocks(teacher, taken)
    else:
        if shape is None:
            fitting = fitting_blocks(teacher.config, reference_parameters)
            places = spread(fitting, teacher.config.num_hidden_layers)
            config = kept_config(teacher.config, places)
        else:
            config = _shaped_config(teacher.config, shape)
        config.dtype = teacher.dtype
        student = fresh_model(config, seed).to(teacher.device).train(teacher.training)
        student.generation_config = copy.deepcopy(teacher.generation_config)
    return student, {
        "start": start,
        "blocks": student.config.num_hidden_layers,
        "taken": taken,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }


def _shaped_config(teacher: PreTrainedConfig, shape: dict[str, Any]) -> PreTrainedConfig:
    """Give the teacher's config with other sizes."""
    width, heads, blocks = shape["width"], shape["heads"], shape["blocks"]
    kv_heads = shape.get("kv_heads") or heads
    adapter = family_of(teacher).adapter
    if kv_heads != heads and not hasattr(teacher, "num_key_value_heads"):
        raise UserError(f"student kv_heads {kv_heads}: heads of {adapter.name} share no keys")
    if heads % kv_heads:
        raise UserError(f"student kv_heads {kv_heads}: must divide its {heads} heads")
    grain = heads * head_grain(teacher)
    if width % grain:
        raise UserError(
            f"student width {width} with {heads} heads: this family needs a multiple of {grain}"
        )
    # Layer types, where there are some, are the teacher's at the same relative depth.
    config = kept_config(teacher, spread(blocks, teacher.num_hidden_layers))
    config.hidden_size = width
    config.num_attention_heads = heads
    setattr(config, adapter.mlp_width, shape.get("mlp") or 4 * width)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = kv_heads
    if getattr(config, "head_dim", None) is not None:
        config.head_dim = width // heads
    return config
