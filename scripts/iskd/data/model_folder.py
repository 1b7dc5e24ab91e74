"""A model's folder as it was given: read and checked without loading anything.

What is wrong with it is found here while a study is planned, not by a job hours later.
"""

import json
import re
from pathlib import Path
from typing import Any

from iskd.data.gguf_header import GgufError, read_header
from iskd.errors import UserError
from iskd.provenance.tensors import MASTER, TensorsError, check_complete, tensor_shapes

MODEL_FILES = (
    *("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"),
    "additional_chat_templates/*.jinja",
)
"""Patterns of the files that are read: nothing that is unpickled or run."""

INDEX = "model.safetensors.index.json"
BLOCK = re.compile(r"(?:^|\.)(?:h|layers)\.([0-9]+)\.")
"""What libraries number blocks by in the names of weights: h.3.attn, layers.3.mlp."""
BLOCK_KEYS = ("num_hidden_layers", "n_layer")
"""Names that the library's config classes read as the number of blocks."""
COMPRESSED = "iskd_"
"""What saved compressed models' types begin with: such a model can be made smaller once more."""
_EMBEDDINGS = ("wte.weight", "embed_tokens.weight", "embed_in.weight")
_ADAPTER = "adapter_config.json"
# What a tokenizer can be read from: each of these sets of files is enough.
_TOKENIZERS = (
    *(("tokenizer.json",), ("tokenizer.model",), ("spiece.model",)),
    *(("vocab.json", "merges.txt"), ("vocab.txt",)),
)


def config_of_folder(folder: Path, where: str) -> dict[str, Any]:
    """Read the ``config.json`` of a model's folder.

    Args:
        folder: the model's folder.
        where: file and key, for messages.

    Raises:
        UserError: there is none, or it is broken, or the folder holds something else.
    """
    path = folder / "config.json"
    if (folder / _ADAPTER).is_file() and not any(folder.glob("model*.safetensors")):
        raise UserError(
            f"{where}: {folder} is an adapter (LoRA), not a model; merge it into its base model "
            "first (merge_and_unload), save that with its tokenizer and name its folder"
        )
    packed = sorted(file.name for file in folder.glob("*.gguf"))
    if packed and not path.exists():
        raise UserError(
            f"{where}: {folder} holds a GGUF file and no config.json; "
            f"add the key gguf: {packed[0]} beside it"
        )
    return _json_object(path, where, "put a model there as save_pretrained writes it")


def config_of_gguf(path: Path, where: str) -> dict[str, Any]:
    """Give what a GGUF file's header says, in the words of a ``config.json``.

    Args:
        path: the file.
        where: file and key, for messages.

    Raises:
        UserError: it is not there, no GGUF file, or cut short.
    """
    try:
        header = read_header(path)
    except FileNotFoundError:
        raise UserError(f"{where}: {path} is not there; put the GGUF file there") from None
    except OSError as error:
        raise UserError(f"{where}: {path}: {error.strerror}") from None
    except GgufError as error:
        raise UserError(f"{where}: {error}; fetch it again") from None
    return {"model_type": header.architecture, "num_hidden_layers": header.blocks}


def files_of_folder(folder: Path, where: str) -> list[str]:
    """List the files of a model's folder that are read, by their path below it.

    Args:
        folder: the model's folder.
        where: file and key, for messages.

    Raises:
        UserError: it has no weights in safetensors.
    """
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{where}: {folder} has no weights in safetensors; save the model anew with "
            f"save_pretrained (pickled weights are never loaded)"
        )
    found = {
        path.relative_to(folder).as_posix()
        for pattern in MODEL_FILES
        for path in folder.glob(pattern)
    }
    return sorted(found - {MASTER})


def check_model_folder(folder: Path, where: str) -> None:
    """Check that a model's folder is complete and that the model can be trained.

    Args:
        folder: the model's folder.
        where: file and key, for messages.

    Raises:
        UserError: no config, weights that are quantised, missing, cut short or of another shape
            than the config's, or no tokenizer.
    """
    config = config_of_folder(folder, where)
    packed = config.get("quantization_config")
    if packed:
        method = packed.get("quant_method") if isinstance(packed, dict) else None
        raise UserError(
            f"{where}: the weights in {folder} are quantised ({method or 'method unknown'}) and "
            "cannot be trained; name the model that they were made from"
        )
    files_of_folder(folder, where)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in _weight_names(folder, where):
        path = folder / name
        try:
            check_complete(path)
            shapes |= tensor_shapes(path)
        except FileNotFoundError:
            raise UserError(
                f"{where}: {path} is not there, though {INDEX} names it; fetch it, too"
            ) from None
        except (TensorsError, OSError) as error:
            raise UserError(f"{where}: {folder}: {error}; fetch it again") from None
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise UserError(
            f"{where}: {folder} has no tokenizer (tokenizer.json); save it there, too: "
            "tokenizer.save_pretrained(folder)"
        )
    _check_shapes(config, shapes, f"{where}: {folder}")


def _check_shapes(config: dict[str, Any], shapes: dict[str, tuple[int, ...]], about: str) -> None:
    """Compare what the config says with the weights: the library makes up what is missing."""
    found = {int(block[1]) for name in shapes if (block := BLOCK.search(name))}
    blocks = next((config[key] for key in BLOCK_KEYS if key in config), len(found))
    # Of a model made smaller before, blocks that were left out have no weights.
    smaller = str(config.get("model_type")).startswith(COMPRESSED)
    if found and blocks != len(found) and not smaller:
        raise UserError(
            f"{about}: config.json says {blocks} blocks, and the weights hold {len(found)}; save "
            "the model anew with save_pretrained"
        )
    known = config.get("vocab_size")
    for name, shape in shapes.items():
        if name.endswith(_EMBEDDINGS) and known is not None and shape[0] != known:
            raise UserError(
                f"{about}: config.json says a vocabulary of {known}, and {name} holds {shape[0]}; "
                "save the model anew with save_pretrained"
            )


def _weight_names(folder: Path, where: str) -> list[str]:
    """Name the files that hold the weights: the one file, or the shards that the index names."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    remedy = "save the model anew with save_pretrained"
    index = _json_object(folder / INDEX, where, remedy)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(_plain(name) for name in shards.values()):
        raise UserError(f"{where}: {folder / INDEX} does not tell its shards; {remedy}")
    return sorted(set(shards.values()))


def _plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _json_object(path: Path, where: str, remedy: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{where}: {path} is not there; {remedy}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise UserError(f"{where}: {path}: {reason}; save the model anew") from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: {path}: no JSON object; save the model anew")
    return found
