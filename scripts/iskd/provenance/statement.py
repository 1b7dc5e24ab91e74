"""What an artifact's ``manifest.json`` says, as an in-toto Statement with SLSA provenance.

The form is others' (https://in-toto.io/Statement/v1 around https://slsa.dev/provenance/v1), so that
their tools can read it: subjects are the artifact's files, ``externalParameters`` the request,
``resolvedDependencies`` what it was made from. Nothing in it is about time or place: the same work
gives the same bytes anywhere, and each statement names its inputs' statements by digest, so that
one digest stands for all that led to it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:iskd:rule:v1"
BUILDER = "urn:iskd:snakemake-workflow"

CODE = "code"
LOCK_FILE = "envs/requirements.lock"
# Longer statements are nobody's: the longest names a study's few thousand artifacts.
MAX_BYTES = 64 * 2**20


class StatementError(ValueError):
    """A text that is no statement of ours; says what is wrong with it."""


@dataclass(frozen=True)
class Produced:
    """One file of an artifact.

    Attributes:
        sha256: of its bytes, in hexadecimal.
        size: in bytes.
        tensors: of a safetensors file, the digest of what it holds (``iskd.provenance.tensors``).
    """

    sha256: str
    size: int
    tensors: str | None = None


@dataclass(frozen=True)
class Statement:
    """What was requested and what came out.

    Attributes:
        request: ``rule``, ``wildcards``, ``parameters``, ``seed``, ``code`` (digest of the code
            that the rule runs), ``lock`` (sha256 of the lock file) and ``inputs``: for each file
            its ``sha256`` and, where it is a manifest, ``artifact``, the digest of that artifact's
            files.
        files: by their path below the artifact's folder.
        summary: the few numbers that a reader wants to see.
    """

    request: dict[str, Any]
    files: dict[str, Produced]
    summary: dict[str, Any]

    @property
    def artifact(self) -> str:
        """The digest of the artifact's files, whatever they were made from."""
        return artifact_digest(self.files)


def canonical_json(value: Any) -> str:
    """Write JSON in one form only: sorted keys, no NaN, two spaces, a newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def artifact_digest(files: Mapping[str, Produced]) -> str:
    """Give the sha256 over the sorted names, digests and sizes of an artifact's files."""
    lines = (f"{name}\0{file.sha256}\0{file.size}\n" for name, file in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_statement(statement: Statement) -> str:
    """Give a statement's text, of which there is one only."""
    request = statement.request
    dependencies = [
        {
            "name": name,
            "digest": {"sha256": about["sha256"]},
            **({"annotations": {"artifact": about["artifact"]}} if "artifact" in about else {}),
        }
        for name, about in sorted(request["inputs"].items())
    ]
    dependencies += [
        {"name": CODE, "digest": {"syntax_trees": request["code"]}},
        {"name": LOCK_FILE, "digest": {"sha256": request["lock"]}},
    ]
    subjects = [
        {
            "name": name,
            "digest": {"sha256": file.sha256}
            | ({"tensors": file.tensors} if file.tensors is not None else {}),
            "annotations": {"bytes": file.size},
        }
        for name, file in sorted(statement.files.items())
    ]
    build = {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            key: request[key] for key in ("rule", "wildcards", "parameters", "seed")
        },
        "resolvedDependencies": dependencies,
    }
    # SLSA keeps what a build says of itself under the run's details.
    details = {"builder": {"id": BUILDER}, "byproducts": [_summary(statement.summary)]}
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": PREDICATE_TYPE,
            "predicate": {"buildDefinition": build, "runDetails": details},
        }
    )


def _summary(summary: dict[str, Any]) -> dict[str, Any]:
    return {"name": "summary", "annotations": summary}


def parse_statement(text: str | bytes) -> Statement:
    """Read a statement and take nothing for granted.

    Args:
        text: the content of a ``manifest.json``.

    Raises:
        StatementError: it is not the one text that :func:`write_statement` gives for some
            statement, or names files that lie outside of the artifact's folder.
    """
    if len(text) > MAX_BYTES:
        raise StatementError("is longer than any statement")
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        statement = _read(data)
        own = write_statement(statement)
    except RecursionError as error:
        raise StatementError("is nested too deeply") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise StatementError(what) from error
    if own != (text.decode() if isinstance(text, bytes) else text):
        raise StatementError("is not in canonical form, or holds what no statement of ours does")
    return statement


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("has a key twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"has the number {name}")


def _read(data: dict[str, Any]) -> Statement:
    build = data["predicate"]["buildDefinition"]
    request = dict(build["externalParameters"])
    if set(request) != {"rule", "wildcards", "parameters", "seed"}:
        raise ValueError(f"has the parameters {', '.join(sorted(request))}")
    inputs: dict[str, dict[str, str]] = {}
    for about in build["resolvedDependencies"]:
        name, digest = about["name"], about["digest"]
        if name == CODE:
            request["code"] = _hex(digest["syntax_trees"], "4,64")
        elif name == LOCK_FILE:
            request["lock"] = _hex(digest["sha256"])
        elif name in inputs:
            raise ValueError(f"names the input {name} twice")
        else:
            inputs[name] = {"sha256": _hex(digest["sha256"])}
            if "annotations" in about:
                inputs[name]["artifact"] = _hex(about["annotations"]["artifact"])
    request["inputs"] = inputs
    files: dict[str, Produced] = {}
    for subject in data["subject"]:
        name, digest = safe_name(subject["name"]), subject["digest"]
        if name in files:
            raise ValueError(f"names the file {name} twice")
        tensors = digest.get("tensors")
        size = subject["annotations"]["bytes"]
        if type(size) is not int or size < 0:
            raise ValueError(f"says that {name} has {size!r} bytes")
        files[name] = Produced(
            _hex(digest["sha256"]), size, None if tensors is None else _hex(tensors)
        )
    (byproduct,) = data["predicate"]["runDetails"]["byproducts"]
    return Statement(request, files, dict(byproduct["annotations"]))


def _hex(value: Any, digits: str = "64") -> str:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise ValueError(f"has the digest {value!r}")
    return value


def safe_name(name: Any) -> str:
    """Give a file's name back if it stays below the folder it is relative to.

    Raises:
        ValueError: it does not, or could be read in two ways.
    """
    if (
        not isinstance(name, str)
        or not name
        or "\\" in name
        or any(ord(character) < 32 for character in name)
        or PurePosixPath(name).is_absolute()
        or PurePosixPath(name).as_posix() != name
        or any(part in ("..", ".") for part in name.split("/"))
    ):
        raise ValueError(f"names the file {name!r}")
    return name
