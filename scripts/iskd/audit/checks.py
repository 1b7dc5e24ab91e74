"""The checks of one study that need no more than its statements and its files' digests."""

import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iskd.audit import answers
from iskd.audit.export import is_exported
from iskd.audit.findings import Code, Finding
from iskd.audit.folder import CRATE, LOCKS, SIGNATURE, Found, StudyFolder, weights_in
from iskd.audit.planned import Planned
from iskd.provenance.artifact import MANIFEST, RUN, file_digest, input_names
from iskd.provenance.fingerprint import SCRIPTS
from iskd.provenance.statement import Produced
from iskd.provenance.tensors import MASTER, TensorsError, tensors_digest

# Clocks of two nodes may differ by as much.
CLOCKS_SECONDS = 5.0

Digests = Mapping[Path, str]
MODELING = SCRIPTS / "iskd" / "models" / "modeling"
# What a model's folder may hold beside the files that are the same for all models.
_CONFIG = "config.json"
_BESIDE_WEIGHTS = (".json", ".txt", ".model", ".py", ".jinja", ".md")


def presence(folder: StudyFolder, plan: Mapping[str, Planned]) -> Iterator[Finding]:
    """Compare what lies there with what the study must have."""
    copies = {name for planned in plan.values() for name in planned.copies}
    for place in plan:
        if place in folder.artifacts:
            continue
        lost = [name for name in folder.loose if name.startswith(f"{place}/")]
        lost = [name for name in lost if name not in copies]
        if lost:
            yield Finding(place, Code.MISSING_STATEMENT, f"{len(lost)} files and no {MANIFEST}")
        else:
            yield Finding(place, Code.MISSING_ARTIFACT, f"{place} is not there")
    for place in folder.artifacts:
        if place not in plan:
            yield Finding(place, Code.ORPHAN, "no artifact of this study has this place")
    missing = [place for place in plan if place not in folder.artifacts]
    known = {*copies, *LOCKS, SIGNATURE}
    for name in folder.loose:
        in_missing = any(name.startswith(f"{place}/") for place in missing)
        exported = CRATE in folder.loose and is_exported(name)
        if name not in known and not in_missing and not exported:
            yield Finding(name, Code.ORPHAN, "no artifact of this study has this file")
    for name in folder.links:
        yield Finding(name, Code.LINK, "not a file that has this name alone")


def statements(folder: StudyFolder, plan: Mapping[str, Planned]) -> Iterator[Finding]:
    """Check what each statement says of itself, and the report of its run."""
    for place, found in folder.artifacts.items():
        if found.statement is None:
            yield Finding(place, Code.BAD_STATEMENT, f"{MANIFEST} {found.wrong}")
            continue
        if found.run is None:
            yield Finding(place, Code.WRONG_RUN, f"there is no {RUN} that can be read")
        elif found.run.get("statement") != found.digest:
            yield Finding(place, Code.WRONG_RUN, f"{RUN} is about another {MANIFEST}")
        if place in plan:
            request, wanted = found.statement.request, plan[place].request
            for key in ("rule", "wildcards"):
                if request[key] != wanted[key]:
                    message = f"its manifest says {key} {request[key]!r}"
                    yield Finding(place, Code.WRONG_SUBJECT, message)
                    break


def made(folder: StudyFolder, plan: Mapping[str, Planned]) -> Iterator[Finding]:
    """Compare the files that a statement names with those that its rule makes."""
    modules = {path.name: file_digest(path) for path in sorted(MODELING.glob("*.py"))}
    for place, found in folder.artifacts.items():
        planned = plan.get(place)
        if found.statement is None or planned is None:
            continue
        named = found.statement.files
        for name in sorted(set(planned.files) - named.keys()):
            yield Finding(
                f"{place}/{name}", Code.WRONG_FILES, "its rule makes it, and it is not named"
            )
        same_code = found.statement.request["code"] == planned.request["code"]
        # How many files hold a model's weights depends on its size, so its rule names none.
        model, weights = _CONFIG in planned.files, weights_in(named)
        if model and not weights:
            yield Finding(f"{place}/{_CONFIG}", Code.WRONG_FILES, "there are no weights beside it")
        beside = {*weights, MASTER} if model else answers.beside(named, planned)
        for name in sorted(named.keys() - set(planned.files) - beside):
            if not model or Path(name).suffix not in _BESIDE_WEIGHTS:
                yield Finding(f"{place}/{name}", Code.WRONG_FILES, "its rule makes no such file")
            elif name.endswith(".py") and same_code and modules.get(name) != named[name].sha256:
                message = "it is not the code that its rule puts beside the weights"
                yield Finding(f"{place}/{name}", Code.WRONG_FILES, message)


def to_digest(folder: StudyFolder) -> list[Path]:
    """List the files whose bytes a verification reads: those of artifacts, and copies of them."""
    names = [
        *(f"{place}/{name}" for place, found in folder.artifacts.items() for name in found.files),
        *folder.loose,
    ]
    return [folder.path / name for name in names]


def contents(
    folder: StudyFolder, plan: Mapping[str, Planned], digests: Digests
) -> Iterator[Finding]:
    """Compare the bytes of every file with what its manifest says, and copies with originals."""
    copies = {name: planned.place for planned in plan.values() for name in planned.copies}
    for place, found in folder.artifacts.items():
        if found.statement is not None:
            for name, recorded in found.statement.files.items():
                yield from _file(folder, f"{place}/{name}", recorded, digests)
            for name in found.files:
                if name not in found.statement.files and f"{place}/{name}" not in copies:
                    what = "the manifest does not name it"
                    yield Finding(f"{place}/{name}", Code.EXTRA_FILE, what)
    for name, place in copies.items():
        origin = folder.artifacts.get(place)
        if origin is None or origin.statement is None:
            continue
        original = origin.statement.files.get(name.rpartition("/")[2])
        path = folder.path / name
        if path not in digests:
            yield Finding(name, Code.MISSING_FILE, f"{place} has a copy there")
        elif original is not None and digests[path] != original.sha256:
            yield Finding(name, Code.CONTENT_CHANGED, f"it is no copy of the one in {place}")


def _file(
    folder: StudyFolder, name: str, recorded: Produced, digests: Digests
) -> Iterator[Finding]:
    path = folder.path / name
    if path not in digests:
        if name not in folder.links:
            yield Finding(name, Code.MISSING_FILE, "the manifest names it")
    elif digests[path] != recorded.sha256:
        yield _changed(name, path, recorded.tensors)
    elif path.stat().st_size != recorded.size:
        what = f"it has {path.stat().st_size} bytes, the manifest says {recorded.size}"
        yield Finding(name, Code.CONTENT_CHANGED, what)


def _changed(name: str, path: Path, tensors: str | None) -> Finding:
    if tensors is not None:
        try:
            if tensors_digest(path) == tensors:
                return Finding(name, Code.RESERIALISED, "other bytes, the same tensors")
        except TensorsError:
            pass
    return Finding(name, Code.CONTENT_CHANGED, "its bytes are not those of the manifest")


def chain(folder: StudyFolder) -> Iterator[Finding]:
    """Check that what each artifact was made from is what lies here."""
    for place, found in folder.artifacts.items():
        if found.statement is None:
            continue
        for name, about in found.statement.request["inputs"].items():
            origin = folder.source(name)
            if origin is None:
                continue
            source = folder.artifacts.get(origin)
            if source is None:
                yield Finding(place, Code.CHAIN_BROKEN, f"{name} is not there")
            elif source.digest == about["sha256"]:
                continue
            elif source.statement is not None and source.statement.artifact == about.get(
                "artifact"
            ):
                message = f"{name} is another statement about the same files"
                yield Finding(place, Code.CHAIN_STATEMENT, message)
            else:
                yield Finding(place, Code.CHAIN_BROKEN, f"made from another {name} than lies here")
    yield from _cycles(folder)
    yield from _times(folder)


def raw_inputs(folder: StudyFolder) -> dict[str, list[tuple[str, str]]]:
    """List inputs that belong to no artifact but lie in the study's folder.

    Returns:
        by name below the folder: the artifacts made from it, each with the digest that it had
    """
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for place, artifact in folder.artifacts.items():
        if artifact.statement is not None:
            for name, about in artifact.statement.request["inputs"].items():
                below = folder.below(name)
                if below is not None and folder.source(name) is None:
                    found[below].append((place, about["sha256"]))
    return found


def raw_chain(folder: StudyFolder, digest: Callable[[Path], str]) -> Iterator[Finding]:
    """Check inputs that belong to no artifact: copies such as metrics.csv."""
    for name, readers in raw_inputs(folder).items():
        path = folder.path / name
        now = digest(path) if path.is_file() and not path.is_symlink() else None
        for place, then in readers:
            if now != then:
                gone = "is not there" if now is None else "has other bytes now"
                yield Finding(place, Code.CHAIN_BROKEN, f"{name}, which it was made from, {gone}")


def _sources(folder: StudyFolder, found: Found) -> Iterator[str]:
    if found.statement is not None:
        names = map(folder.source, found.statement.request["inputs"])
        yield from (name for name in names if name is not None)


def _cycles(folder: StudyFolder) -> Iterator[Finding]:
    """Find artifacts that are their own ancestors; the path is followed without recursion."""
    done: set[str] = set()
    for start in folder.artifacts:
        path: list[str] = []
        on_path: set[str] = set()
        waiting: list[tuple[str, bool]] = [(start, False)]
        while waiting:
            place, leaving = waiting.pop()
            if leaving:
                on_path.discard(path.pop())
                done.add(place)
            elif place in on_path:
                circle = " <- ".join([*path[path.index(place) :], place])
                yield Finding(place, Code.CYCLE, circle)
            elif place not in done and place in folder.artifacts:
                path.append(place)
                on_path.add(place)
                waiting.append((place, True))
                waiting += [(s, False) for s in _sources(folder, folder.artifacts[place])]


def _span(run: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Give start and end of a run in seconds since 1970, if it tells them."""
    try:
        start = datetime.fromisoformat(str((run or {})["started"])).timestamp()
        return start, start + float((run or {})["seconds"])
    except (KeyError, ValueError, TypeError):
        return None


def _times(folder: StudyFolder) -> Iterator[Finding]:
    now = datetime.now(UTC).timestamp()
    for place, found in folder.artifacts.items():
        if found.run is None:
            continue
        span = _span(found.run)
        if span is None:
            yield Finding(place, Code.WRONG_RUN, f"{RUN} does not say when the job ran")
            continue
        if span[1] > now + CLOCKS_SECONDS:
            yield Finding(place, Code.TIME_ORDER, "its run ends in the future")
        if span[1] < span[0]:
            yield Finding(place, Code.TIME_ORDER, "its run ends before it starts")
        for source in _sources(folder, found):
            before = _span(folder.artifacts[source].run) if source in folder.artifacts else None
            if before is not None and span[0] + 1 + CLOCKS_SECONDS < before[1]:
                yield Finding(place, Code.TIME_ORDER, f"it was begun before {source} was there")


def inputs(folder: StudyFolder, plan: Mapping[str, Planned]) -> Iterator[Finding]:
    """Compare the set of inputs with what the workflow gives such a job."""
    for place, planned in plan.items():
        found = folder.artifacts.get(place)
        if found is None or found.statement is None:
            continue
        wanted = set(input_names(planned.read, lambda path: _in_artifact(path, plan)))
        given = set(found.statement.request["inputs"])
        for name in sorted(wanted - given):
            yield Finding(place, Code.WRONG_INPUT_SET, f"it was not made from {name}")
        for name in sorted(given - wanted):
            yield Finding(place, Code.WRONG_INPUT_SET, f"it was made from {name} besides")


def _in_artifact(path: Path, plan: Mapping[str, Planned]) -> bool:
    return "/".join(path.parts[2:-1]) in plan and path.parts[:1] == ("results",)


def currency(
    folder: StudyFolder, plan: Mapping[str, Planned], lock: str, *, code: bool
) -> Iterator[Finding]:
    """Compare parameters, and on request code and packages, with what the workflow would use now.

    Args:
        folder: the study.
        plan: what its config asks for.
        lock: sha256 of the lock file.
        code: compare code and lock too.
    """
    for place, planned in plan.items():
        found = folder.artifacts.get(place)
        if found is None or found.statement is None:
            continue
        request, wanted = found.statement.request, planned.request
        for key in ("parameters", "seed"):
            for where, old, new in differences(request[key], wanted[key], key):
                message = f"{where} was {reprlib.repr(old)}, the config has {reprlib.repr(new)}"
                yield Finding(place, Code.STALE_CONFIG, message)
        if code and request["code"] != wanted["code"]:
            message = f"by code {request['code']}, the checkout has {wanted['code']}"
            yield Finding(place, Code.STALE_CODE, message)
        if code and request["lock"] != lock:
            yield Finding(place, Code.STALE_ENVIRONMENT, "the lock of packages is another one now")


def differences(old: Any, new: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Find the innermost places where two values differ: each place, and both values there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    elif old != new or type(old) is not type(new):
        yield where, old, new


def mixtures(folder: StudyFolder) -> Iterator[Finding]:
    """Find a study that was made by more than one version of the code or of the packages."""
    by_rule: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    locks: dict[str, list[str]] = defaultdict(list)
    for place, found in folder.artifacts.items():
        if found.statement is not None:
            request = found.statement.request
            by_rule[request["rule"]][request["code"]].append(place)
            locks[request["lock"]].append(place)
    for rule, codes in by_rule.items():
        yield from _fewer(codes, Code.MIXED_CODE, f"other code of {rule} than made the others")
    yield from _fewer(locks, Code.MIXED_ENVIRONMENT, "another lock than the others have")


def _fewer(groups: Mapping[str, Iterable[str]], code: Code, what: str) -> Iterator[Finding]:
    """Report all but the largest group."""
    ordered = sorted(groups.values(), key=lambda places: (len(list(places)), sorted(places)))
    for places in ordered[:-1]:
        for place in places:
            yield Finding(place, code, what)
