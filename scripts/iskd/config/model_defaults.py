"""What a config may leave out about a given model: its family, its blocks, which of them go when.

It is read from the model's own ``config.json``, or its GGUF file's header, and filled in before the
config is checked, so that everything behind this sees, and records, a config that says all.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

from iskd.config import schema
from iskd.config.schema import FILLED_IN, GIVEN, FamilyName
from iskd.data.model_folder import BLOCK_KEYS, COMPRESSED
from iskd.errors import UserError

# Half of the blocks for three tenths of the parameters, as the paper does in both of its models.
_BLOCKS_PER_REDUCTION = 5 / 3
ANY_MODEL = {"model_type": "gpt2", "n_layer": 1}
"""In the place of a model that is named wrongly: the schema shall find nothing else to tell."""

Find = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""Give the ``config.json`` of a teacher, by its name and section."""


def fill_in(raw: Mapping[str, Any], file: str, find: Find) -> dict[str, Any]:
    """Fill in what the sections of given teachers leave out.

    Args:
        raw: the parsed file, not checked yet: what is wrong in it is left to the schema.
        file: its name, for messages.
        find: is called only where something must be read from the model.

    Returns:
        a config with all of ``FILLED_IN`` that a given teacher needs, but for ``files``

    Raises:
        UserError: the model's architecture cannot be made smaller, or its config does not tell.
    """
    teachers = raw.get("teachers")
    if not isinstance(teachers, Mapping):
        return dict(raw)
    filled = {
        name: _filled(f"{file}: teachers.{name}", str(name), section, find)
        if isinstance(section, Mapping) and section.get("source") in GIVEN
        else section
        for name, section in teachers.items()
    }
    return {**raw, "teachers": filled}


def fill_in_from(raw: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the sections of given teachers leave out, from the config of an earlier run."""
    teachers = raw.get("teachers")
    if not isinstance(teachers, Mapping):
        return dict(raw)
    known = recorded["teachers"]
    filled = {}
    for name, section in teachers.items():
        same = isinstance(section, Mapping) and known.get(name, {}).get("source")
        if same and section.get("source") == same and same in GIVEN:
            left_out = {key: known[name][key] for key in FILLED_IN if key in known[name]}
            filled[name] = {**left_out, **section}
        else:
            filled[name] = section
    return {**raw, "teachers": filled}


def names_a_model(section: Mapping[str, Any]) -> bool:
    """Tell whether a section says in the right form which model it means."""
    if section.get("source") == "folder":
        gguf = section.get("gguf")
        right = gguf is None or matches(schema.GgufFile, gguf)
        return right and matches(schema.DataFile, section.get("folder"))
    revision = section.get("revision")
    right = revision is None or matches(schema.Commit, revision)
    return right and matches(schema.HubId, section.get("model"))


def matches(kind: Any, value: object) -> bool:
    """Tell whether a value is what one of the schema's patterns asks for."""
    pattern = get_args(kind)[1].pattern
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _filled(where: str, name: str, section: Mapping[str, Any], find: Find) -> dict[str, Any]:
    found = dict(section)
    if "family" not in found or "blocks" not in found:
        config = find(name, section) if names_a_model(section) else ANY_MODEL
        if "family" not in found:
            found["family"] = _family(where, config)
        if "blocks" not in found:
            found["blocks"] = _blocks(where, config)
    blocks = found["blocks"]
    if type(blocks) is int and blocks >= 1:
        # A list says itself how many blocks go.
        if not isinstance(section.get("order"), list):
            found.setdefault("steps", _steps(found.get("compact"), blocks))
        found.setdefault("order", middle_out(blocks))
    return found


def _family(where: str, config: Mapping[str, Any]) -> str:
    kind = str(config.get("model_type")).removeprefix(COMPRESSED)
    if kind not in get_args(FamilyName):
        raise UserError(
            f"{where}: the model's architecture {kind!r} is not supported; use a decoder of one "
            f"of the families {', '.join(get_args(FamilyName))}"
        )
    return kind


def _blocks(where: str, config: Mapping[str, Any]) -> int:
    for key in BLOCK_KEYS:
        if type(config.get(key)) is int:
            return int(config[key])
    raise UserError(
        f"{where}: the model's config.json does not tell its blocks; add the key blocks"
    )


def _steps(compact: object, blocks: int) -> int:
    given = compact.get("reduction") if isinstance(compact, Mapping) else None
    reduction = schema.scientific(given)
    if not isinstance(reduction, float) or not 0 < reduction < 1:
        return blocks
    return min(blocks, math.ceil(round(_BLOCKS_PER_REDUCTION * reduction * blocks, 6)))


def middle_out(blocks: int) -> list[int]:
    """Order a model's blocks from the middle outwards, so that the first and the last go last."""
    middle = (blocks - 1) / 2
    return sorted(range(blocks), key=lambda index: (abs(index - middle), index))
