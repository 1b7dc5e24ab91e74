"""Where a given model comes from and under which licence, as far as its own files tell."""

import re
from pathlib import Path
from typing import Any

import yaml

from iskd.data.gguf_header import GgufError, read_header

CARD = "README.md"
"""The model's card, with the hub's metadata on top."""

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_URL = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?")


def origin_of(folder: Path, config: dict[str, Any], gguf: str | None) -> dict[str, str]:
    """Read a model's licence and the id on the hub that it, or what it was made from, has.

    The licence is read from the card, else from the GGUF file; the id from ``_name_or_path`` in
    ``config.json``, else from the GGUF file, else from the card, whose ``base_model`` is what the
    model itself was made from. What is malformed counts as not there.

    Args:
        folder: the model's folder.
        config: its ``config.json``; may be empty.
        gguf: the name of its GGUF file, if it is one.

    Returns:
        ``licence`` and ``base_model``, those that are known
    """
    card = _front_matter(folder / CARD)
    header = _header(folder / gguf) if gguf is not None else {}
    url = _URL.fullmatch(str(header.get("general.base_model.0.repo_url", "")))
    ids = (config.get("_name_or_path"), url[1] if url else None, card.get("base_model"))
    licences = (card.get("license"), header.get("general.license"))
    found = {
        "licence": _first(licences, _LICENCE),
        "base_model": _first(ids, _HUB_ID),
    }
    return {key: value for key, value in found.items() if value is not None}


def _first(values: tuple[object, ...], form: re.Pattern[str]) -> str | None:
    for value in values:
        single = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(single, str) and form.fullmatch(single):
            return single
    return None


def _front_matter(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found = re.match(r"---\r?\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
    try:
        data = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        data = None
    return data if isinstance(data, dict) else {}


def _header(path: Path) -> dict[str, Any]:
    try:
        return read_header(path).values
    except (OSError, GgufError):
        return {}
