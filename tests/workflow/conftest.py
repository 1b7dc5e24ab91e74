"""Copies of the workflow to run in, as a user's fresh clone would be."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from iskd.audit.isolation import no_network
from tests.measured import is_measured

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("workflow", "scripts", "config", "envs", "tools", "tests/config")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")
TINY = ("--configfile", "tests/config/tiny.yaml", "-c", "2")
# A folder in which finished studies are kept from one call of pytest for the next ones.
KEPT = "ISKD_KEPT"


@dataclass
class Clone:
    """One copy of the workflow and a way to call Snakemake in it."""

    folder: Path

    def snakemake(
        self, *arguments: str, prefix: Sequence[str] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Call Snakemake in the copy and give what it printed."""
        return subprocess.run(
            [*prefix, sys.executable, "-m", "snakemake", *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def iskd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call the command `iskd` with the copy's own code."""
        return subprocess.run(
            [sys.executable, "-m", "iskd.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder / "scripts")},
            capture_output=True,
            text=True,
            check=False,
        )

    def planned(self, *arguments: str) -> dict[str, int]:
        """Count the jobs that a call would run, by rule; targets are not counted."""
        done = self.snakemake("-n", *arguments, "-q", "rules")
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed[-4000:]
        found = re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE)
        counts = {rule: int(count) for rule, count in found if rule not in ("total", "all")}
        assert counts or "Nothing to be done" in printed, printed[-4000:]
        return counts

    def copy(self, folder: Path) -> "Clone":
        """Copy all there is, with its times, as moving the clone would."""
        shutil.copytree(self.folder, folder)
        return Clone(folder)

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text of a file that must be there once."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def files(self, below: str = "results") -> dict[str, bytes]:
        """Read every file below a folder."""
        top = self.folder / below
        return {
            f.relative_to(top).as_posix(): f.read_bytes() for f in top.rglob("*") if f.is_file()
        }


def make_clone(folder: Path) -> Clone:
    """Copy what a run needs into ``folder``."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=IGNORED)
    shutil.copy(ROOT / "slurm", folder / "slurm", follow_symlinks=False)
    return Clone(folder)


def check_same_results(one: Clone, other: Clone, study: str) -> None:
    """Compare every file of a study but those that say how, when and how fast."""
    ours, theirs = (
        {n: data for n, data in c.files(f"results/{study}").items() if not is_measured(n)}
        for c in (one, other)
    )
    assert set(ours) == set(theirs)
    assert [n for n in ours if ours[n] != theirs[n]] == []


MakeOnce = Callable[[str, Callable[[Clone], None]], Clone]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A copy for one test."""
    return make_clone(tmp_path / "clone")


@pytest.fixture(scope="session")
def clone_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """Make copies that several tests share."""
    return lambda name: make_clone(tmp_path_factory.mktemp(name) / "clone")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Have a clone made by whichever test asks first, for all of pytest's processes.

    Where ``ISKD_KEPT`` names a folder, as in CI, it is there for the calls of pytest that follow,
    too. Such a clone is only looked at: take a copy to change it.
    """
    top = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        top = top.parent
    top = Path(os.environ.get(KEPT) or top)

    def make(name: str, run: Callable[[Clone], None]) -> Clone:
        clone = Clone(top / name)
        with FileLock(top / f"{name}.lock"):
            if not clone.folder.exists():
                # A call that was killed has left a part of it.
                shutil.rmtree(top / f"unfinished {name}", ignore_errors=True)
                draft = make_clone(top / f"unfinished {name}")
                run(draft)
                draft.folder.rename(clone.folder)
        return clone

    return make


@pytest.fixture(scope="session")
def finished(made_once: MakeOnce) -> Clone:
    """The smallest study, finished, made without a network where that can be had."""

    def run(clone: Clone) -> None:
        done = clone.snakemake(*TINY, prefix=without_network() or ())
        assert done.returncode == 0, done.stderr[-4000:]

    return made_once("finished", run)


def without_network() -> list[str] | None:
    """Give the command that runs another one without any network, or None where there is none."""
    return list(no_network()) or None
