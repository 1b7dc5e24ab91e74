"""Complete a config from the models it names: in local folders, or on the hub."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iskd.config.load import find_data_folder, refuse_outsize
from iskd.config.model_defaults import ANY_MODEL, fill_in, matches, names_a_model
from iskd.config.schema import DataFolder, Name
from iskd.data.model_folder import config_of_folder, config_of_gguf, files_of_folder
from iskd.data.model_origin import origin_of
from iskd.errors import UserError


def complete(
    raw: Mapping[str, Any], file: str, lock: Callable[[str], Path], *, ask: bool
) -> dict[str, Any]:
    """Fill in what the sections of given teachers leave out.

    What was looked up on the hub once is kept in the study's lock file, beside the commits.

    Args:
        raw: the parsed config, not checked yet.
        file: its name, for messages.
        lock: the study's lock file, by the study's name.
        ask: whether the hub may be queried for what is not in the lock file.

    Raises:
        UserError: a model is not there, or cannot be made smaller.
    """
    refuse_outsize(raw, file)
    # What is no name is for the schema to tell; nothing is to be read or written by it.
    study = raw.get("study")
    known_study = matches(Name, study)

    def find(name: str, section: Mapping[str, Any]) -> Mapping[str, Any]:
        where = f"{file}: teachers.{name}"
        if section["source"] == "folder":
            place = _folder(raw, section, file)
            if place is None:
                return ANY_MODEL
            if section.get("gguf") is not None:
                return config_of_gguf(place / section["gguf"], f"{where}.gguf")
            return config_of_folder(place, f"{where}.folder")
        if not known_study:
            return ANY_MODEL
        known = _known(section, lock(str(study)))
        if known is None and ask:
            # Slow to import, and the only module that opens a connection.
            from iskd.data.hub import locked_shape

            try:
                known = locked_shape(section["model"], section.get("revision"), lock(str(study)))
            except UserError as error:
                raise UserError(
                    f"{where}: family and blocks are left out, so the hub is asked: {error}"
                ) from error
        if known is None:
            raise UserError(f"{where}: family and blocks are left out and not known; add them")
        return known

    filled = fill_in(raw, file, find)
    teachers = filled.get("teachers")
    for name, section in teachers.items() if isinstance(teachers, Mapping) else ():
        _add_origin(raw, section, file)
        missing = isinstance(section, dict) and "files" not in section
        if missing and section.get("source") == "folder" and names_a_model(section):
            if section.get("gguf") is not None:
                section["files"] = [section["gguf"]]
                continue
            place = _folder(raw, section, file)
            if place is not None:
                where = f"{file}: teachers.{name}.folder"
                # Whoever says family and blocks has not met a broken config.json yet.
                config_of_folder(place, where)
                section["files"] = files_of_folder(place, where)
    return filled


def _add_origin(raw: Mapping[str, Any], section: object, file: str) -> None:
    """Add the licence and the id on the hub that a model's folder tells; unknown is no mistake."""
    if not isinstance(section, dict) or section.get("source") != "folder":
        return
    if not names_a_model(section) or {"licence", "base_model"} <= section.keys():
        return
    try:
        place = _folder(raw, section, file)
    except UserError:
        return  # what is needed of the folder is asked for elsewhere
    if place is not None:
        try:
            config = json.loads((place / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            config = None
        found = origin_of(place, config if isinstance(config, dict) else {}, section.get("gguf"))
        section.update({key: value for key, value in found.items() if key not in section})


def _folder(raw: Mapping[str, Any], section: Mapping[str, Any], file: str) -> Path | None:
    """Find a model's folder; None where the schema will refuse what names it."""
    named = raw.get("data_folder")
    if named is not None and not matches(DataFolder, named):
        return None
    return find_data_folder(named, file) / str(section["folder"])


def _known(section: Mapping[str, Any], lock: Path) -> Mapping[str, Any] | None:
    """Give what the lock file has about a model of the hub."""
    try:
        entries = json.loads(lock.read_bytes())
    except (OSError, ValueError):
        return None  # the rules that fetch say what is wrong with it
    if not isinstance(entries, dict):
        return None
    commit = section.get("revision") or entries.get(f"model:{section['model']}")
    found = entries.get(f"shape:{section['model']}@{commit}")
    return found if isinstance(found, dict) else None
