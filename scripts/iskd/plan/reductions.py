"""Whether the reductions that a study asks for can be reached, told while it is planned.

How much of a model its blocks hold is read from the headers of its weights, or worked out from the
shape that the config gives, which takes no library. Only where that comes near to what is asked for
is the model's own code imported, which counts exactly.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from iskd.config.counts import block_count
from iskd.config.schema import FolderTeacher, HubTeacher, PretrainedHere, Replacing, Study, Teacher
from iskd.data.model_folder import BLOCK
from iskd.errors import UserError
from iskd.plan.trainings import StudyTrainings
from iskd.provenance.tensors import tensor_shapes, weight_files
from iskd.settings import SizeRequest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The smallest blocks that recipes make hold less than a tenth of those that they replace, or else
# the job that plans the substitutions says so.
_NEAR = 0.9
# Families whose MLPs are gated: three matrices instead of two.
_GATED = ("llama", "mistral", "qwen2", "qwen3")
# Families whose input and output embeddings are one matrix, in models that are made here.
_TIED = ("gpt2",)
# The least that a tokenizer which is trained here may have: bytes and what marks an end.
_LEAST_VOCABULARY = 260


@dataclass(frozen=True)
class Weights:
    """How a model's parameters are spread.

    Attributes:
        whole: all of them; tied ones count once.
        block: those of one block.
        estimated: whether they were not counted.
    """

    whole: float
    block: float
    estimated: bool = False


def check_reductions(
    study: Study, trainings: StudyTrainings, folders: Mapping[str, Path], file: str
) -> None:
    """Check that each reduction a study asks for can be reached, where the model can be read.

    Args:
        study: the checked config.
        trainings: the parameters of its trainings.
        folders: where the given teachers lie that are at hand, by name; of safetensors only.
        file: the config's name, for messages.

    Raises:
        UserError: one cannot be reached.
    """
    for name, teacher in study.teachers.items():
        weights = _weights(teacher, folders.get(name))
        if weights is None:
            continue
        for key, request in _requests(study, trainings, name):
            assert request.reduction is not None  # noqa: S101 - only such are given
            # With recipe parts any block may change at any step.
            parts = request.recipe == "parts"
            blocks = block_count(teacher) if parts else request.replaced
            reachable = blocks * weights.block / weights.whole
            where = f"{file}: {key}"
            if request.reduction >= reachable and not weights.estimated:
                raise UserError(f"{where}: {out_of_reach(request, blocks, reachable)}")
            if not parts and request.reduction > _NEAR * reachable:
                try:
                    _count(teacher, folders.get(name), request)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None


def out_of_reach(request: SizeRequest, blocks: int, reachable: float) -> str:
    """Say that a reduction is more than the replaced blocks hold.

    Args:
        request: what is asked for.
        blocks: how many are made smaller.
        reachable: the share of the model's parameters that these blocks hold.
    """
    if request.recipe == "parts":
        how, more = f"making {blocks} blocks smaller", ""
    else:
        how, more = f"replacing {blocks} blocks", "replace more blocks (steps, order) or "
    return (
        f"reduction {request.reduction:g} cannot be reached by {how}, which hold {reachable:.1%} "
        f"of the model; {more}ask for less"
    )


def given_folders(study: Study, data: Path | None, results: Path) -> dict[str, Path]:
    """Find the folders of a study's given models that are at hand, in safetensors.

    Args:
        study: the checked config.
        data: the folder of its local files.
        results: the study's folder, with what was fetched.
    """
    found = {}
    for name, teacher in study.teachers.items():
        if isinstance(teacher, FolderTeacher) and teacher.gguf is None and data is not None:
            found[name] = data / teacher.folder
        elif isinstance(teacher, HubTeacher):
            found[name] = results / "download_model" / name
    return {name: folder for name, folder in found.items() if weight_files(folder)}


def _requests(
    study: Study, trainings: StudyTrainings, teacher: str
) -> Iterator[tuple[str, SizeRequest]]:
    """Give each arm's request for a reduction, with the key that asks for it."""
    for name, arm in study.arms.items():
        if not isinstance(arm, Replacing):
            continue
        request = trainings.sizes(teacher, name)
        own = arm.compact is not None and arm.compact.reduction is not None
        if request.reduction is None and request.like is not None:
            # As much as the teacher's section asks for, in this arm's way.
            request = replace(request, reduction=request.like.reduction)
        if request.reduction is not None:
            key = f"arms.{name}" if own else f"teachers.{teacher}"
            yield f"{key}.compact.reduction", request


def _weights(teacher: Teacher, folder: Path | None) -> Weights | None:
    """Tell how a teacher's parameters are spread; None where it is not at hand."""
    if isinstance(teacher, PretrainedHere):
        return _planned(teacher)
    if folder is None:
        return None
    try:
        shapes = [shape for file in weight_files(folder) for shape in tensor_shapes(file).items()]
    except (OSError, ValueError):
        return None  # told by the job that reads it
    return spread(shapes, block_count(teacher))


def spread(shapes: Iterable[tuple[str, tuple[int, ...]]], blocks: int) -> Weights | None:
    """Tell how a model's parameters are spread, from the names and shapes of its tensors.

    Args:
        shapes: of all tensors.
        blocks: how many blocks it has.

    Returns:
        None where the names do not tell the blocks, or these are not alike
    """
    whole, sizes = 0, Counter[int]()
    for name, shape in shapes:
        # Older files of GPT-2 hold the attention's mask, with four axes: no parameter.
        size = math.prod(shape) if len(shape) < 4 else 0
        block = BLOCK.search(name)
        whole += size
        if block is not None:
            sizes[int(block[1])] += size
    # Blocks of several sizes are those of a model that has been made smaller before.
    if len(sizes) != blocks or len(set(sizes.values())) != 1:
        return None
    return Weights(whole, sizes[0])


def _planned(teacher: PretrainedHere) -> Weights:
    """Estimate it for a teacher that is made here: matrices only, and the fewest embeddings."""
    shape = teacher.architecture
    shared = (shape.kv_heads or shape.heads) / shape.heads
    attention = shape.width**2 * (2 + 2 * shared)
    matrices = 3 if teacher.family in _GATED else 2
    block = attention + matrices * shape.width * (shape.mlp or 4 * shape.width)
    embeddings = 1 if teacher.family in _TIED else 2
    whole = shape.blocks * block + embeddings * _LEAST_VOCABULARY * shape.width
    return Weights(whole, block, estimated=True)


def _count(teacher: Teacher, folder: Path | None, request: SizeRequest) -> None:
    """Settle the sizes with the model's own code.

    Raises:
        UserError: the reduction is out of reach.
    """
    from iskd.models.planning import requested_sizes

    requested_sizes(_config(teacher, folder), request)


def _config(teacher: Teacher, folder: Path | None) -> "PreTrainedConfig":
    if isinstance(teacher, PretrainedHere):
        from iskd.models.scratch import scratch_config

        shape = teacher.architecture
        return scratch_config(
            teacher.family,
            shape.model_dump(),
            vocabulary=_LEAST_VOCABULARY,
            positions=shape.positions,
            end_token=0,
        )
    from iskd.models.folder import load_config

    assert folder is not None  # noqa: S101 - without it nothing was counted
    return load_config(folder)
