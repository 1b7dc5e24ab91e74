"""The code that an artifact was made by: this checkout's or a commit's, in another folder."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from iskd.provenance.artifact import RUN
from iskd.provenance.environment import CHECKOUT, CODE_FOLDERS, code_files, tree_digest


class UnavailableError(Exception):
    """Why the code is not to be had here."""


def copy_code(top: Path, checkout: Path = CHECKOUT) -> None:
    """Copy the code of a checkout, this one's if none is named, into a folder."""
    for name in code_files(checkout):
        target = top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkout / name, target)


def check_out(commit: str, top: Path) -> None:
    """Put the code of a commit of this repository into a folder.

    Raises:
        UnavailableError: the repository has no such commit.
    """
    if len(commit) not in (40, 64) or set(commit) - set("0123456789abcdef"):
        raise UnavailableError(f"{RUN} names {commit!r} as its commit, which is none")
    done = subprocess.run(  # noqa: S603 - fixed program; the commit is checked above
        ["git", "-C", str(CHECKOUT), "archive", "--format=tar", commit, *CODE_FOLDERS],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise UnavailableError(f"commit {commit}, which it was made at, is not in this repository")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(top, filter="data")


def recorded_code(run: dict[str, Any], top: Path) -> None:
    """Put the code that a report of a run is about into a folder, byte for byte.

    Args:
        run: what an artifact's ``run.json`` says.
        top: the folder, empty.

    Raises:
        UnavailableError: neither this checkout nor the commit that it names has that code.
    """
    wanted, commit = run.get("code"), (run.get("git") or {}).get("commit")
    if wanted == tree_digest():
        copy_code(top)
        return
    if commit is None:
        raise UnavailableError(f"the code here is other, and {RUN} names no commit to take it from")
    check_out(str(commit), top)
    if tree_digest(top) != wanted:
        raise UnavailableError(
            f"it was made by code that neither this checkout nor commit {commit} has"
        )
