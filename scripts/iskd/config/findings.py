"""What is wrong with a config by its schema, in one line: key, value and remedy."""

import difflib
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from iskd.config import schema
from iskd.config.as_meant import as_meant, in_plain_words
from iskd.config.schema import Study

_PATTERN_REMEDIES = {
    schema.Name: "use lower-case letters, digits, '-' and '_' only, starting with a letter or "
    "digit",
    schema.Commit: "give the commit's 40 hexadecimal digits (no branch, no tag), or leave the key "
    "out and `prefetch` locks the commit it finds",
    schema.HubId: "give a hub id such as openai-community/gpt2",
    schema.GgufFile: "give the name of a file that ends in .gguf, without a folder",
    schema.DataFile: "give a file below data_folder, without '..' and not absolute",
    schema.Line: "give one line of characters that can be seen",
    schema.DataFolder: "give a folder below the working directory without '..', or $NAME for the "
    "folder that the environment variable NAME holds",
}


def _pattern_of(annotated: Any) -> str:
    return str(get_args(annotated)[1].pattern)


_REMEDY_OF_PATTERN = {_pattern_of(kind): text for kind, text in _PATTERN_REMEDIES.items()}


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Give every section class that a field's annotation mentions outside of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated, list):
        for part in get_args(annotation):
            yield from _sections(part)


def _dict_value(annotation: Any) -> Any | None:
    """Give the value type of a ``dict[...]`` annotation (perhaps inside ``Annotated``)."""
    if get_origin(annotation) is Annotated:
        return _dict_value(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    return None


def _tag_of(section: type[BaseModel], key: str) -> str | None:
    field = section.model_fields.get(key)
    return get_args(field.annotation)[0] if field is not None else None


class _Place:
    """One place of the config, found by walking pydantic's location through the schema.

    pydantic puts the tag of a tagged union into the location, and the type of a plain union's
    member (``list[...]``); a reader has no such key in the file, so both are left out of ``path``.
    """

    _NO_KEY = re.compile(r"\[key\]|(list|literal)\[.*\]")

    def __init__(self, location: tuple[int | str, ...]) -> None:
        self.path: list[str] = []
        self.section: type[BaseModel] | None = Study
        self.description = ""
        self.tag = ""
        self._beside: list[type[BaseModel]] = []
        mapping: Any | None = None
        candidates: list[type[BaseModel]] = []
        for part in location:
            if self._NO_KEY.fullmatch(str(part)):
                continue
            if candidates:
                tags = ("source", "method")
                tagged = [(c, t) for c in candidates for t in tags if part == _tag_of(c, t)]
                self._beside = candidates
                self.section, self.tag = tagged[0] if tagged else (candidates[0], "")
                candidates = []
                if tagged:
                    continue
            self.path.append(str(part))
            if mapping is not None:
                annotation, mapping = mapping, None
            else:
                field = self.section.model_fields.get(str(part)) if self.section else None
                if field is None:
                    continue  # a place in a list
                self.description = field.description or ""
                annotation = field.annotation
                mapping = _dict_value(annotation)
            sections = list(_sections(annotation))
            if len(sections) > 1:
                candidates = sections
            elif sections:
                self.section = sections[0]

    def owners(self, key: str) -> list[str]:
        """List the tags of the other sections that may stand here, of those that have a key."""
        having = [c for c in self._beside if self.tag and key in c.model_fields]
        return [str(_tag_of(section, self.tag)) for section in having]

    @property
    def key(self) -> str:
        return ".".join(self.path) or "(top level)"


def _unknown(error: ErrorDetails) -> str:
    """Say that there is no such key, and which one is meant or where it belongs."""
    # An unknown key may be called what pydantic calls a place that is none.
    *above, own = error["loc"]
    place = _Place(tuple(above))
    key = ".".join([*place.path, str(own)])
    if owners := place.owners(str(own)):
        return f"{key}: unknown key here; it goes with {place.tag} {', '.join(owners)}; remove it"
    known = list(place.section.model_fields) if place.section else []
    near = difflib.get_close_matches(str(own), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
    return f"{key}: unknown key; {hint}"


def _say(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    place = _Place(error["loc"])
    if kind == "missing":
        about = place.description.rstrip(".")
        return f"{place.key}: missing; add it{f' ({about})' if about else ''}"
    if kind == "union_tag_not_found":
        tag = str(context["discriminator"]).strip("'")
        return f"{place.key}.{tag}: missing; it decides which keys belong here"
    if kind == "union_tag_invalid":
        tag = str(context["discriminator"]).strip("'")
        given = shown(context["tag"])
        return f"{place.key}.{tag}: {given} is unknown; use {context['expected_tags']}"
    given = shown(error["input"])
    if kind == "string_pattern_mismatch":
        remedy = _REMEDY_OF_PATTERN.get(str(context["pattern"]), "use letters, digits, '_', '-'")
        return f"{place.key}: {given} is not allowed here; {remedy}"
    message = in_plain_words(error["msg"])
    if isinstance(error["input"], dict | list):
        given = "this"
    meant = as_meant(kind, error["input"])
    message += f": {meant}" if meant else ""
    about = f" ({place.description.rstrip('.')})" if place.description else ""
    return f"{place.key}: {given} does not fit; {message}{about}"


def shown(value: Any) -> str:
    """Show a value as Python writes it, cut to what fits into a message."""
    given = repr(value)
    return given if len(given) <= 60 else given[:57] + "..."


def first_finding(error: ValidationError) -> str:
    """Say the first thing that is wrong, and how many more keys are.

    Args:
        error: what the schema finds.
    """
    found = error.errors(include_url=False)
    # The members of a union find fault with the same key, each on its own.
    others = len({_Place(error["loc"]).key for error in found}) - 1
    more = f" (and {others} more)" if others else ""
    # A key that is misspelled says more than that it is missing.
    unknown = [e for e in found if e["type"] == "extra_forbidden"]
    beside = [e for e in unknown if e["loc"][:-1] == found[0]["loc"][:-1]]
    first = beside[0] if beside and found[0]["type"] == "missing" else found[0]
    return f"{_unknown(first) if first in unknown else _say(first)}{more}"
