"""Small trainings that one process or several can do: the same call in each of them."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from iskd.models import CompactSizes, replace_block
from iskd.models.families import family_of
from iskd.models.scratch import fresh_model, scratch_config
from iskd.runtime.workdir import WorkFolder
from iskd.settings import (
    LearningRates,
    ObjectiveSettings,
    RecordingSettings,
    TrainingSettings,
)
from iskd.training import compiling, loop
from iskd.training.objectives import Mixture, Objective, next_token_loss
from iskd.training.optimizer import published_groups
from iskd.training.recording import record
from iskd.training.teacher_cache import TeacherCache
from iskd.training.theseus import StochasticBlocks

VOCABULARY, POSITIONS = 61, 48
SIZES = CompactSizes(width=8, heads=2, blocks=2, mlp=12, positions=POSITIONS)
SETTINGS = TrainingSettings(
    epochs=2,
    batch_size=6,
    learning_rate=LearningRates(compact=1e-3, rest=1e-4),
    optimizer="adamw",
    weight_decay=0.01,
    beta2=0.95,
    schedule="cosine",
    warmup=0.1,
    clip=1.0,
    precision="float32",
)
STEPS = 8  # two epochs of 19 sequences: the last batch of each has one, which some go without
Result = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]


def small(family: str = "gpt2", *, dropout: float = 0.0, blocks: int = 2) -> PreTrainedModel:
    shape = {"blocks": blocks, "width": 16, "heads": 2, "mlp": None}
    config = scratch_config(
        family,
        shape,
        vocabulary=VOCABULARY,
        positions=POSITIONS,
        end_token=0,
        dropout=dropout,
        initializer_range=0.2,
    )
    return fresh_model(config, seed=1)


def sequences(count: int = 19) -> torch.Tensor:
    draw = torch.Generator().manual_seed(7)
    return torch.randint(1, VOCABULARY, (count, 10), generator=draw, dtype=torch.int32)


def plain(work: WorkFolder | None = None, objective: Objective = next_token_loss) -> Result:
    model = small()
    history = loop.fine_tune(
        model, sequences(), SETTINGS, seed=5, work=work, objective=objective, compact=[model]
    )
    return model.state_dict(), history


def with_dropout(work: WorkFolder | None = None, objective: Objective = next_token_loss) -> Result:
    model = small(dropout=0.1)
    history = loop.fine_tune(model, sequences(), SETTINGS, seed=5, work=work, objective=objective)
    return model.state_dict(), history


def with_teacher() -> Result:
    """A new block at a rate of its own, in a model whose head is not its embedding."""
    teacher = small("llama", blocks=3)
    model, block = replace_block(teacher, 1, SIZES, "paper", seed=1)
    objective = Mixture(
        ObjectiveSettings(next_token=0.5, kl=0.5, hidden=0.1, temperature=2.0), teacher
    )
    history = loop.fine_tune(
        model, sequences(), SETTINGS, seed=5, compact=[block], objective=objective
    )
    return model.state_dict(), history


def with_answers() -> Result:
    """The teacher's recorded answers: each process reads those to its part of a batch."""
    teacher = small("llama", blocks=3)
    model, block = replace_block(teacher, 1, SIZES, "paper", seed=1)
    text = sequences()
    settings = RecordingSettings("sampled", "float32", 2.0, 5, sequences=None, validation=0)
    with tempfile.TemporaryDirectory() as place:
        record(lambda: teacher, text, settings, step=1, seed=5, out=Path(place))
        objective = Mixture(
            ObjectiveSettings(next_token=0.5, kl=0.5, temperature=2.0),
            cache=TeacherCache([Path(place)], torch.arange(len(text))),
        )
        history = loop.fine_tune(
            model,
            text,
            replace(SETTINGS, micro_batch=2),
            seed=5,
            compact=[block],
            objective=objective,
        )
    return model.state_dict(), history


def as_published() -> Result:
    """Blocks 10 and 11 are in no group, and stay as they are."""
    model, block = replace_block(small(blocks=12), 1, SIZES, "paper", seed=1)
    history = loop.fine_tune(
        model, sequences(), SETTINGS, seed=5, compact=[block], grouping=published_groups
    )
    return model.state_dict(), history


def theseus() -> Result:
    """In each update some blocks are not used at all."""
    teacher = small(blocks=3)
    model, new = replace_block(teacher, 1, SIZES, "paper", seed=1)
    originals = {1: family_of(teacher.config).blocks(teacher)[1]}
    with StochasticBlocks(model, originals, first=0.3, curriculum=1.0, seed=3) as blocks:
        history = loop.fine_tune(
            model, sequences(), SETTINGS, seed=5, compact=[new], on_update=blocks.draw
        )
    return model.state_dict(), history


def half_precision() -> Result:
    model = small()
    history = loop.fine_tune(model, sequences(), replace(SETTINGS, precision="bfloat16"), seed=5)
    return model.state_dict(), history


def in_parts() -> Result:
    """Each process adds up the gradients of its part's parts; they exchange them once."""
    model, block = replace_block(small("llama", blocks=3), 1, SIZES, "paper", seed=1)
    settings = replace(SETTINGS, micro_batch=2, checkpointing=True)
    history = loop.fine_tune(model, sequences(), settings, seed=5, compact=[block])
    return model.state_dict(), history


def compiled() -> Result:
    """Blocks run compiled inside of the model that is wrapped; the backend is the quick one."""
    compiling.BACKEND = "aot_eager"
    model, block = replace_block(small(blocks=3), 1, SIZES, "paper", seed=1)
    settings = replace(SETTINGS, micro_batch=2, compile=True)
    history = loop.fine_tune(model, sequences(), settings, seed=5, compact=[block])
    return model.state_dict(), history


NOT_SPLIT = ("theseus", "compiled")
"""What ``fsdp`` refuses."""

CASES: dict[str, Callable[[], Result]] = {
    "plain": plain,
    "in_parts": in_parts,
    "with_teacher": with_teacher,
    "with_answers": with_answers,
    "as_published": as_published,
    "theseus": theseus,
    "half_precision": half_precision,
    "compiled": compiled,
}
