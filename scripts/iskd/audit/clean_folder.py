"""A folder that holds nothing but what an artifact was made from: code, declared inputs."""

import shutil
import subprocess
import sys
from pathlib import Path

from iskd.audit.code import check_out, copy_code
from iskd.audit.folder import Found, StudyFolder
from iskd.audit.isolation import clean_environment
from iskd.audit.verdict import Reproduction
from iskd.provenance.artifact import MANIFEST, RUN, file_digest, read_manifest
from iskd.provenance.environment import LOCK, tree_digest, versions
from iskd.provenance.fingerprint import code_fingerprint
from iskd.provenance.statement import LOCK_FILE, Statement


class RefusedError(Exception):
    """Why an artifact cannot be made again here."""


def lay_out_code(found: Found, top: Path, done: Reproduction) -> None:
    """Put the code that made an artifact into a folder: this checkout's, or a commit's.

    Args:
        found: the artifact.
        top: the folder.
        done: where it is noted how the code's surroundings differ from those of then.

    Raises:
        RefusedError: the code that is here has another lock of packages.
        UnavailableError: the code cannot be had.
    """
    assert found.statement is not None  # noqa: S101 - the caller has looked
    request, run = found.statement.request, found.run or {}
    if (
        code_fingerprint(request["rule"]) == request["code"]
        and file_digest(LOCK) == request["lock"]
    ):
        copy_code(top)
        if run.get("code") != tree_digest():
            done.notes.append("this checkout is another; what the rule runs is the same in it")
    else:
        check_out(run, top, lambda code: _fingerprint_in(code, request["rule"]) == request["code"])
        if file_digest(top / LOCK_FILE) != request["lock"]:
            raise RefusedError("it was made with another lock of packages than its code has")
    if file_digest(LOCK) != request["lock"]:
        done.notes.append("the packages here are another lock's than it was made with")
    for package, version in versions().items():
        recorded = (run.get("versions") or {}).get(package)
        if recorded != version:
            done.notes.append(f"{package} {version} here, {recorded} then")


def _fingerprint_in(top: Path, rule: str) -> str:
    """Work out a rule's digest of code by the library of another checkout."""
    program = "import sys; from iskd.provenance.fingerprint import code_fingerprint as digest; "
    done = subprocess.run(  # noqa: S603 - the library of a commit that this repository has
        [sys.executable, "-c", f"{program}print(digest(sys.argv[1]))", rule],
        env=clean_environment(top),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def lay_out_inputs(folder: StudyFolder, statement: Statement, top: Path) -> None:
    """Copy the declared inputs, whole artifacts as they were, after checking their bytes.

    Args:
        folder: the study.
        statement: what the artifact was made from.
        top: the folder to copy into.

    Raises:
        RefusedError: an input is not in the study, or is not as it was.
    """
    for name, about in statement.request["inputs"].items():
        below = folder.below(name)
        if below is None:
            raise RefusedError(f"it was made from the local file {name}, which is not in the study")
        source = folder.path / below
        if not source.is_file() or file_digest(source) != about["sha256"]:
            raise RefusedError(f"its input {name} is not here as it was")
        target = top / "results" / folder.name / below
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if source.name == MANIFEST:
            for file, produced in read_manifest(source).files.items():
                part = source.parent / file
                if not part.is_file() or file_digest(part) != produced.sha256:
                    raise RefusedError(f"{part.name} of its input {name} is not here as it was")
                copy = target.parent / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(part, copy)
            # A report of a run is read for its times alone, where it is.
            if (source.parent / RUN).is_file():
                shutil.copyfile(source.parent / RUN, target.parent / RUN)
