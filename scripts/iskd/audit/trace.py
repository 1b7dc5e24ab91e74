"""Where a file comes from: its statement, those of its inputs, and so on down to the data."""

import csv
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from iskd.audit.folder import METRICS, Found, StudyFolder
from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST, RUN, file_digest, text_digest
from iskd.provenance.statement import canonical_json

# `iskd.paper.figures.canvas.ORIGIN`, without the drawing libraries.
_REQUEST = re.compile(rb"iskd-request:([0-9a-f]{64})")
# Larger files than figures are not searched for a digest in them.
_FIGURE_BYTES = 64 * 2**20


@dataclass
class Origin:
    """One thing that a file comes from.

    Attributes:
        name: the artifact's place, or a file of no artifact.
        lines: its description.
        sources: what it was made from.
        seen: it stands further up already, with its sources.
    """

    name: str
    lines: list[str] = field(default_factory=list)
    sources: list["Origin"] = field(default_factory=list)
    seen: bool = False


def trace(study: Path, file: Path) -> Origin:
    """Find out where a file comes from.

    Args:
        study: the study's folder of results.
        file: a file or an artifact's folder in it; or a figure from anywhere, which is known by
            what its metadata say, or by its bytes.

    Raises:
        UserError: there is no such file, or no statement in the study is about it.
    """
    folder = StudyFolder(study)
    place, how = _place_of(folder, file)
    origin = _origin(folder, place, set())
    origin.lines.insert(0, how)
    return origin


def trace_number(study: Path, macro: str) -> Origin:
    """Find out where a printed number comes from: the evaluations that it is the mean of.

    Args:
        study: the study's folder of results.
        macro: its LaTeX macro, with or without the backslash.

    Raises:
        UserError: the study prints no such number.
    """
    folder = StudyFolder(study)
    for rule in ("paper_numbers", "paper_measured_numbers"):
        path = study / rule / "numbers.csv"
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["macro"].lstrip("\\") == macro.lstrip("\\"):
                    return _number_origin(folder, rule, row)
    raise UserError(f"{study}: no number is called {macro}; numbers.csv lists them")


def _number_origin(folder: StudyFolder, rule: str, row: dict[str, str]) -> Origin:
    about = f"{row['teacher']}, {row['arm']}, step {row['step']}, {row['task']}"
    lines = [f"{row['text']} {row['unit']} ({row['meaning']}; {about}); unrounded {row['value']}"]
    origin, seen = Origin(row["macro"], lines), set[str]()
    model = f"{row['teacher']}/{row['arm']}"
    if int(row["step"]):  # else a model as it was given: the teacher, or one of the hub
        model += f"/seed_*/step_{int(row['step']):02d}"
    patterns = (f"evaluate/{model}/{row['task']}", f"evaluate_heldout/{model}/{row['task']}")
    places = [p for p in folder.artifacts if any(fnmatchcase(p, pattern) for pattern in patterns)]
    # What stands for no single evaluation comes from the table of all of them.
    for place in places or [rule]:
        origin.sources.append(_origin(folder, place, seen))
    return origin


def study_of(file: Path) -> Path | None:
    """Find the study's folder that a file lies in: where its numbers lie, or in ``results``."""
    parents = [p for p in (file.resolve(), *file.resolve().parents) if p.is_dir()]
    known = (p for p in parents if (p / METRICS / MANIFEST).is_file())
    return next(known, next((p for p in parents if p.parent.name == "results"), None))


def _place_of(folder: StudyFolder, file: Path) -> tuple[str, str]:
    top = folder.path.resolve()
    if not file.exists():
        raise UserError(f"{file}: there is no such file")
    if file.resolve().is_relative_to(top):
        name = file.resolve().relative_to(top).as_posix()
        inner = next((p for p in (name, *_parents(name)) if p in folder.artifacts), None)
        # The paper's folder is full of copies.
        if inner is not None and inner != "paper":
            return inner, f"{name} is of this artifact"
    if file.is_dir():
        raise UserError(f"{file}: no artifact lies there")
    digest = file_digest(file)
    for place, found in folder.artifacts.items():
        if place != "paper" and found.statement is not None:
            for name, produced in found.statement.files.items():
                if produced.sha256 == digest:
                    return place, f"{file.name} has the bytes of {place}/{name}"
    if file.stat().st_size <= _FIGURE_BYTES:
        for request in _REQUEST.findall(file.read_bytes()):
            for place, found in folder.artifacts.items():
                if found.statement is not None and request_digest(found) == request.decode():
                    message = (
                        f"{file.name} names what it was asked for with: this artifact's request"
                    )
                    return place, f"{message}; its bytes are not the ones that lie here"
    raise UserError(f"{file}: no statement of {folder.path} is about it")


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def request_digest(found: Found) -> str:
    """Give the digest of what an artifact was asked for, as its figures carry it."""
    assert found.statement is not None  # noqa: S101 - the caller has looked
    return text_digest(canonical_json(found.statement.request))


def _origin(folder: StudyFolder, place: str, seen: set[str]) -> Origin:
    found = folder.artifacts.get(place)
    if found is None or found.statement is None:
        return Origin(place, ["its statement is not there, or cannot be read"])
    if place in seen:
        return Origin(place, seen=True)
    seen.add(place)
    origin = Origin(place, list(_described(found)))
    for name, about in found.statement.request["inputs"].items():
        place_of_source = folder.source(name)
        if place_of_source is not None:
            source = _origin(folder, place_of_source, seen)
            if source.name in folder.artifacts and (
                folder.artifacts[source.name].digest != about["sha256"]
            ):
                source.lines.append("NOT the one it was made from: that has another statement")
            if source.name not in {s.name for s in origin.sources}:
                origin.sources.append(source)
        elif folder.below(name) is None:
            origin.sources.append(Origin(name, [f"a local file, sha256 {about['sha256']}"]))
    return origin


def _described(found: Found) -> Iterator[str]:
    assert found.statement is not None  # noqa: S101 - the caller has looked
    request = found.statement.request
    seed = "" if request["seed"] is None else f", seed {request['seed']}"
    yield f"statement {found.digest}"
    yield f"rule {request['rule']}{seed}, code {request['code']}, lock {request['lock'][:16]}"
    if found.statement.summary:
        numbers = ", ".join(f"{key} {value}" for key, value in found.statement.summary.items())
        yield numbers
    yield from _ran(found.run or {})


def _ran(run: dict[str, Any]) -> Iterator[str]:
    if "started" not in run:
        yield f"no {RUN} says when and where"
        return
    git = run.get("git") or {}
    dirty = " with changes" if git.get("modified") else ""
    yield (
        f"ran {run['started']} for {run.get('seconds')} s on {run.get('device')}, "
        f"commit {git.get('commit')}{dirty}"
    )


def as_text(origin: Origin) -> str:
    """Draw the tree for a terminal."""
    return "\n".join(_text_lines(origin, "", "")) + "\n"


def _text_lines(origin: Origin, first: str, others: str) -> Iterator[str]:
    yield f"{first}{origin.name}{' (see above)' if origin.seen else ''}"
    inner = "|  " if origin.sources else "   "
    for line in origin.lines:
        yield f"{others}{inner}{line}"
    for number, source in enumerate(origin.sources):
        last = number == len(origin.sources) - 1
        yield from _text_lines(source, f"{others}+- ", f"{others}{'   ' if last else '|  '}")


_PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Where {name} comes from</title>
<style>
body {{ font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 70em; }}
summary {{ cursor: pointer; font-weight: bold; }}
details {{ margin-left: 1.5em; border-left: 1px solid #bbb; padding-left: .8em; }}
p {{ margin: .1em 0 .1em 1.2em; color: #444; overflow-wrap: anywhere; }}
</style></head><body>
<h1>Where {name} comes from</h1>
{tree}
</body></html>
"""


def as_page(origin: Origin) -> str:
    """Draw the tree as a small HTML page that needs nothing else."""
    return _PAGE.format(name=html.escape(origin.name), tree=_branch(origin))


def _branch(origin: Origin) -> str:
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in origin.lines)
    if origin.seen:
        return f"<details><summary>{html.escape(origin.name)} (see above)</summary></details>"
    inner = "".join(_branch(source) for source in origin.sources)
    name = html.escape(origin.name)
    return f"<details open><summary>{name}</summary>{lines}{inner}</details>"
