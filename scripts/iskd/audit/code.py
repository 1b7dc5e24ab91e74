"""The code that an artifact was made by: this checkout's or a commit's, in another folder."""

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iskd.provenance.artifact import RUN
from iskd.provenance.environment import (
    CHECKOUT,
    CODE_FOLDERS,
    PLAN,
    code_files,
    git,
    tree_digest,
)


class UnavailableError(Exception):
    """Why the code is not to be had here."""


def copy_code(top: Path) -> None:
    """Copy this checkout's code into a folder."""
    for name in code_files():
        target = top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CHECKOUT / name, target)


def check_out(run: Mapping[str, Any], top: Path, is_right: Callable[[Path], bool]) -> None:
    """Put the code of the commit that a report of a run names into a folder.

    Args:
        run: what an artifact's ``run.json`` says.
        top: the folder, empty.
        is_right: tells whether the code there is the one that is looked for.

    Raises:
        UnavailableError: it names none, this repository has no such commit, or its code is another.
    """
    commit = (run.get("git") or {}).get("commit")
    if commit is None:
        raise UnavailableError(f"the code here is other, and {RUN} names no commit to take it from")
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", str(commit)):
        raise UnavailableError(f"{RUN} names {commit!r} as its commit, which is none")
    paths = [*CODE_FOLDERS, *([PLAN] if git("ls-tree", "--name-only", commit, PLAN) else [])]
    done = subprocess.run(  # noqa: S603 - fixed program; the commit is checked above
        ["git", "-C", str(CHECKOUT), "archive", "--format=tar", commit, *paths],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnavailableError(f"commit {commit}, which it was made at, is not in this repository")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(top, filter="data")
    if not is_right(top):
        raise UnavailableError(
            f"it was made by code that neither this checkout nor commit {commit} has"
        )


def recorded_code(run: Mapping[str, Any], top: Path) -> None:
    """Put the code that a report of a run is about into a folder, byte for byte.

    Args:
        run: what an artifact's ``run.json`` says.
        top: the folder, empty.

    Raises:
        UnavailableError: neither this checkout nor the commit that it names has that code.
    """
    wanted = run.get("code")
    if wanted == tree_digest():
        copy_code(top)
    else:
        check_out(run, top, lambda folder: tree_digest(folder) == wanted)
