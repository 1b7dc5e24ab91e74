"""Whether a model in a local folder is what a study takes it for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iskd.config.schema import FolderTeacher, Replacing, Study
from iskd.data.model_folder import (
    BLOCK_KEYS,
    COMPRESSED,
    check_model_folder,
    config_of_folder,
    config_of_gguf,
)
from iskd.errors import UserError

# Names that the library's config classes read as the longest text.
_POSITIONS = ("max_position_embeddings", "n_positions")
# The same of what recipe narrow keeps some of, by the config's key.
_KEPT = {"heads": ("num_attention_heads", "n_head"), "mlp": ("intermediate_size", "n_inner")}


def check_given_model(study: Study, name: str, data: Path, file: str) -> None:
    """Look at the model of a teacher in a local folder, and at what the config says of it.

    Args:
        study: the checked config.
        name: the teacher's.
        data: the folder of the study's local files.
        file: the config's name, for messages.

    Raises:
        UserError: the folder cannot be used (see :func:`check_model_folder`), or the config says
            another family or number of blocks than the model's, longer sequences than it takes, or
            narrow blocks that are wider than its own.
    """
    teacher = study.teachers[name]
    if not isinstance(teacher, FolderTeacher):
        return
    where, folder = f"{file}: teachers.{name}", data / teacher.folder
    if teacher.gguf is not None:
        found, source = config_of_gguf(folder / teacher.gguf, f"{where}.gguf"), teacher.gguf
    else:
        check_model_folder(folder, f"{where}.folder")
        found, source = config_of_folder(folder, f"{where}.folder"), "config.json"
        _check_tokenizer(found, folder, f"{where}.folder")
    # A GGUF file's architecture has a name of its own.
    family = str(found.get("model_type")).removeprefix(COMPRESSED)
    family = teacher.family if teacher.gguf is not None else family
    blocks = next((found[key] for key in BLOCK_KEYS if key in found), teacher.blocks)
    for key, own, other in (
        ("family", teacher.family, family),
        ("blocks", teacher.blocks, blocks),
    ):
        if own != other:
            raise UserError(f"{where}.{key}: {own}, and {source} says {other}; leave the key out")
    positions = next((found[key] for key in _POSITIONS if type(found.get(key)) is int), None)
    if positions is not None and study.corpus.block_length > positions:
        raise UserError(
            f"{file}: corpus.block_length: {study.corpus.block_length}, and the model of "
            f"teachers.{name} takes {positions} tokens ({source}); ask for no more"
        )
    _check_narrow(study, name, found, f"{file}: ")


def _check_narrow(study: Study, name: str, config: Mapping[str, Any], file: str) -> None:
    """Check that blocks of recipe narrow have no more heads and neurons than the model's own.

    Raises:
        UserError: some have.
    """
    wanted = {f"teachers.{name}": study.teachers[name].compact}
    for arm, settings in study.arms.items():
        if isinstance(settings, Replacing) and settings.compact is not None:
            wanted[f"arms.{arm}"] = settings.compact
    for where, compact in wanted.items():
        for key, names in _KEPT.items():
            asked = getattr(compact, key)
            own = next((config[n] for n in names if type(config.get(n)) is int), None)
            if compact.recipe == "narrow" and own is not None and (asked or 0) > own:
                raise UserError(
                    f"{file}{where}.compact.{key}: {asked}, and a block of teachers.{name} has "
                    f"{own}, of which recipe narrow keeps some; ask for less"
                )


def _check_tokenizer(config: Mapping[str, Any], folder: Path, where: str) -> None:
    """Check that each token has its embedding, as far as a tokenizer.json tells its tokens.

    Raises:
        UserError: one has none.
    """
    try:
        read = json.loads((folder / "tokenizer.json").read_bytes())
        own = read["model"]["vocab"]
        # A dictionary of numbers, or a list whose places are the numbers.
        last = max(own.values()) if isinstance(own, dict) else len(own) - 1
        last = max([last, *(token["id"] for token in read.get("added_tokens") or [])])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # another kind of tokenizer: told by the job that loads it
    known = config.get("vocab_size")
    if type(known) is int and last >= known:
        raise UserError(
            f"{where}: the tokenizer in {folder} has a token {last}, and config.json says a "
            f"vocabulary of {known}; save the tokenizer of this model there, or resize the model's "
            "embeddings"
        )
