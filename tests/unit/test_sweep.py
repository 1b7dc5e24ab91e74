"""What a job left that was killed between publishing and tidying up."""

from pathlib import Path

import pytest

from iskd.provenance.artifact import MANIFEST
from iskd.runtime.workdir import sweep
from tests.unit.test_workdir import held


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """An artifact deep in the results, with a work folder and an old artifact beside it."""
    folder = tmp_path / "rule" / "arm" / "step_01"
    for place in (folder, work_of(folder) / "run" / "checkpoint-3", old_of(folder)):
        place.mkdir(parents=True)
        (place / MANIFEST).write_text("{}")
    (work_of(folder) / "lock").touch()
    return folder


def work_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.work")


def old_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def test_what_lies_beside_a_published_artifact_goes(artifact: Path, tmp_path: Path) -> None:
    sweep(tmp_path)
    assert [entry.name for entry in artifact.parent.iterdir()] == [artifact.name]
    assert (artifact / MANIFEST).exists()


def test_states_of_an_artifact_that_is_not_there_stay(artifact: Path, tmp_path: Path) -> None:
    (artifact / MANIFEST).unlink()
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_job_that_still_runs_keeps_its_folder(artifact: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with held(work_of(artifact)) as holder:
        sweep(tmp_path)
        assert sorted(tmp_path.rglob("*")) == before
        holder.communicate("")
    sweep(tmp_path)
    assert not work_of(artifact).exists()


def test_a_work_folder_that_was_half_removed_goes_too(artifact: Path, tmp_path: Path) -> None:
    (work_of(artifact) / "lock").unlink()
    sweep(tmp_path)
    assert not work_of(artifact).exists()


def test_results_that_are_not_there_are_no_error(tmp_path: Path) -> None:
    sweep(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
