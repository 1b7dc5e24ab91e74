"""Copies of the workflow to run in, as a user's fresh clone would be."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("workflow", "scripts", "config", "envs", "tests/config")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


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
    return Clone(folder)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A copy for one test."""
    return make_clone(tmp_path / "clone")


@pytest.fixture(scope="session")
def clone_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """Make copies that several tests share."""
    return lambda name: make_clone(tmp_path_factory.mktemp(name) / "clone")


def without_network() -> list[str] | None:
    """Give the command that runs another one without any network, or None where there is none."""
    for command in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        try:
            done = subprocess.run([*command, "true"], capture_output=True, check=False)
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            return command
    return None
