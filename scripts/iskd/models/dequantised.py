"""A model in a GGUF file as an ordinary folder: its weights are unpacked once."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from transformers.utils.quantization_config import GgufConfig

from iskd.data.gguf_header import GgufHeader, read_header
from iskd.errors import UserError
from iskd.models.folder import save_model

PRECISION = "bfloat16"
"""What unpacked weights are stored in unless a study says otherwise. The rounding (2**-9 of a
weight) is small beside that of the quantisation, and most models of today were trained in it."""

_NOT_OF_THE_MODEL = (
    *("quantization_config", "model_type"),
    *("transformers_version", "_model_name_or_path"),
)


def dequantise(file: Path, folder: Path, *, precision: str | None = None) -> GgufHeader:
    """Write the model of a GGUF file into a folder: config, tokenizer, weights in safetensors.

    The chat template and the special tokens for generation that the file has come along.

    Args:
        file: the GGUF file.
        folder: where to.
        precision: ``float32``, ``bfloat16`` or ``float16``; left out, ``PRECISION``.

    Returns:
        what the file's header says

    Raises:
        UserError: it is no GGUF file, or of an architecture that transformers cannot read.
    """
    try:
        header = read_header(file)
    except ValueError as error:
        raise UserError(f"{error}; fetch it again") from error
    if header.architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise UserError(
            f"{file.name}: transformers cannot read GGUF files of the architecture "
            f"{header.architecture}; use the model's folder in safetensors"
        )
    given = {"gguf_file": file.name, "local_files_only": True}
    packed = AutoModelForCausalLM.from_pretrained(
        file.parent,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        **given,
    )
    config = packed.config.to_dict()
    for key in _NOT_OF_THE_MODEL:
        config.pop(key, None)
    # A model that remembers its GGUF file refuses to be saved.
    model = type(packed)(type(packed.config)(**config))
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
    save_model(model, tokenizer, folder, precision=precision or PRECISION)
    return header
