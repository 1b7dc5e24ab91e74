"""A model as an ONNX graph: by torch's exporter, with transformers' corrections for onnxruntime.

The graph reads whole texts (``input_ids`` and ``attention_mask``, both (batch, positions), any
batch and length) and gives their logits, (batch, positions, vocabulary). It has no KV cache.
Weights lie beside it in ``model.onnx.data``, since a protobuf file ends at 2 GB.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim

from iskd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from iskd.serving.agreement import Logits

GRAPH = "model.onnx"
"""The graph's file in the folder that is written."""


def export_onnx(model: "PreTrainedModel", folder: Path, *, where: str) -> Path:
    """Write a model's graph, its weights and its config into a folder.

    transformers' ``ExportedModel.from_pretrained`` reads the folder, and onnxruntime the graph.

    Args:
        model: in evaluation mode, on the CPU; left as it is.
        folder: where to; made if it is not there.
        where: the model's folder, for messages.

    Returns:
        the graph's file

    Raises:
        UserError: torch cannot trace the model, or the folder cannot be written.
    """
    from transformers.exporters import OnnxConfig, OnnxExporter

    # At least two of each: torch would take a size of 1 for one that never changes.
    ids = torch.arange(1, 11).reshape(2, 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    free = {name: {0: Dim.AUTO, 1: Dim.AUTO} for name in inputs}
    own = model.config.use_cache
    model.config.use_cache = False
    try:
        with _quiet():
            exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic_shapes=free))
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{where}: torch cannot export this model to ONNX: {reason[0]}") from error
    finally:
        model.config.use_cache = own
    try:
        exported.save_pretrained(folder)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; name a folder to write to") from None
    return folder / GRAPH


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's stages and its remarks on operators that no model here has to itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def onnx_logits(graph: Path) -> "Logits":
    """Give what asks onnxruntime for the logits after a text, on as many cores as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def logits(text: list[int]) -> NDArray[np.float32]:
        ids = np.array([text], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        found: NDArray[np.float32] = session.run(["logits"], given)[0][0, -1]
        return found

    return logits
