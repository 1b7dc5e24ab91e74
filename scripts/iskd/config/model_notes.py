"""What a plan says of each model in a local folder, in one line: number format, chat template."""

import json
from pathlib import Path

from iskd.config.load import data_folder
from iskd.config.schema import FolderTeacher, Study
from iskd.data.gguf_header import read_header
from iskd.provenance.tensors import dominant_dtype, weight_files

# Number formats by their names in a safetensors header; a model is published in one of the first
# three, what has another format in float32 (`published_dtype` of iskd.models.folder).
_PUBLISHED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# What a GGUF file is unpacked to unless the config says otherwise.
_UNPACKED = "bfloat16"


def model_notes(study: Study, file: str) -> list[str]:
    """Give a line for each model in a local folder: what is kept of it, and in which format.

    Args:
        study: the checked config, whose folders have been checked, too.
        file: its name, for the lines.
    """
    notes = []
    for name, teacher in study.teachers.items():
        if isinstance(teacher, FolderTeacher):
            folder = data_folder(study, file) / teacher.folder
            try:
                notes.append(f"{file}: teachers.{name}: {describe(teacher, folder)}")
            except (OSError, ValueError):
                continue  # changed since it was checked: the job that reads it tells
    return notes


def describe(teacher: FolderTeacher, folder: Path) -> str:
    """Describe a model in one line.

    Args:
        teacher: its section of the config.
        folder: where it lies.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what its name says.
    """
    if teacher.gguf is not None:
        values = read_header(folder / teacher.gguf).values
        stored, usual = "a GGUF file", _UNPACKED
        template = "tokenizer.chat_template" in values
    else:
        dtype = dominant_dtype(weight_files(folder))
        stored = _PUBLISHED.get(dtype, dtype)
        usual = _PUBLISHED.get(dtype, "float32")
        template = has_chat_template(folder)
    kept = (
        "its chat template is kept"
        if template
        else "it has no chat template (an instruct model needs one: save its tokenizer in the "
        "folder with tokenizer.save_pretrained)"
    )
    return (
        f"{teacher.family} of {teacher.blocks} blocks in {stored}; models made of it are saved in "
        f"{teacher.save_precision or usual} (key save_precision), and {kept}"
    )


def has_chat_template(folder: Path) -> bool:
    """Tell whether a model's folder has a chat template, in any of the places for it.

    Raises:
        ValueError: the tokenizer's config is broken.
    """
    if any((folder / f"chat_template.{kind}").is_file() for kind in ("jinja", "json")):
        return True
    config = folder / "tokenizer_config.json"
    found = json.loads(config.read_bytes()) if config.is_file() else {}
    return isinstance(found, dict) and bool(found.get("chat_template"))
