"""A model with 8-bit integers as weights: torchao's weight-only scheme, by transformers.

Each row of a projection's matrix is stored as integers from -127 to 127 and one scale (symmetric,
``Int8WeightOnlyConfig``); sums are in the model's own number format. Embeddings, the output
projection, norms and biases stay as they are. The folder is safetensors and is read by
``from_pretrained`` wherever torchao is installed.
"""

import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, TorchAoConfig

from iskd.errors import UserError
from iskd.models.folder import SHARD_BYTES, checkpoint_bytes, load_tokenizer, published_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Quantised:
    """What became of a model's weights.

    Attributes:
        matrices: how many are integers now.
        share: of the model's parameters that these hold.
        before: bytes of weights on disk.
        after: the same of what was written.
    """

    matrices: int
    share: float
    before: int
    after: int


def quantise(source: Path, folder: Path) -> Quantised:
    """Write a model's folder anew with its projections as 8-bit integers.

    Args:
        source: a model's folder, as all others here: its weights are not quantised yet.
        folder: where to write model, tokenizer and generation config; another one.

    Raises:
        UserError: it is the same folder, or the model has no projection that can be quantised
            (torchao takes ``Linear``, and GPT-2's whole blocks hold ``Conv1D``).
    """
    if folder.resolve() == source.resolve():
        raise UserError(f"{folder}: the model itself lies there; name another folder")
    model = load_quantised(source, published_dtype(source))
    sizes = [weight.numel() for weight in integer_weights(model)]
    if not sizes:
        raise UserError(
            f"{source}: none of its projections is a Linear, so torchao would quantise nothing "
            "(GPT-2's whole blocks hold Conv1D); use the folder as it is"
        )
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    load_tokenizer(source).save_pretrained(folder)
    if (source / _GENERATION).exists():
        shutil.copyfile(source / _GENERATION, folder / _GENERATION)
    return Quantised(
        matrices=len(sizes),
        share=sum(sizes) / model.num_parameters(),
        before=checkpoint_bytes(source),
        after=checkpoint_bytes(folder),
    )


def load_quantised(folder: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Read a model, in a number format, and quantise it on the way; a quantised one stays as it is.

    Args:
        folder: of a model, or one that :func:`quantise` has written.
        dtype: of what is not quantised, and of the sums.

    Returns:
        the model, on the CPU, in evaluation mode
    """
    # It tells of each of its CUDA libraries that a processor cannot load.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8WeightOnlyConfig

        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
        )
    return model.eval()


def integer_weights(model: "PreTrainedModel") -> list[torch.Tensor]:
    """Give a model's matrices that torchao holds as 8-bit integers."""
    from torchao.quantization import Int8Tensor

    return [weight for weight in model.parameters() if isinstance(weight, Int8Tensor)]
