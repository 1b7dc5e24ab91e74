"""A finished study for all tests of this folder, and copies of its results to tamper with."""

import shutil
from pathlib import Path

import pytest

from tests.workflow.conftest import Clone, finished, made_once

from .tampering import RESULTS, PlannedOnce, Results

__all__ = ["finished", "made_once"]


@pytest.fixture
def planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have verifications in this process ask Snakemake once for each study's plan."""
    monkeypatch.setattr("iskd.audit.verify.Planning", PlannedOnce)


@pytest.fixture
def results(finished: Clone, tmp_path: Path) -> Results:
    """A copy of the finished study's results, to be tampered with."""
    folder = tmp_path / "elsewhere" / RESULTS
    shutil.copytree(finished.folder / RESULTS, folder)
    return Results(folder)
