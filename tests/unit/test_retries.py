"""Retries tell a job that was killed from one that failed by its own fault."""

from contextlib import suppress
from pathlib import Path

import pytest

from iskd.errors import UserError
from iskd.runtime.retries import attempt
from iskd.runtime.signals import Interrupted
from iskd.runtime.workdir import WorkFolder


class AcceleratorError(RuntimeError):
    """Named like torch's error for a broken device."""


def try_once(folder: Path, number: int | None, error: Exception | None, request: int = 1) -> bool:
    """Make one attempt; say whether the body ran."""
    work, ran = WorkFolder(folder / "work", {"asked": request}), False
    with suppress(Exception), work.locked(), attempt(work, number):
        ran = True
        if error is not None:
            raise error
    return ran


@pytest.mark.parametrize("error", [UserError("too short"), ValueError("bug"), RuntimeError("bug")])
def test_an_own_fault_is_not_tried_again(tmp_path: Path, error: Exception) -> None:
    assert try_once(tmp_path, 1, error)
    assert not try_once(tmp_path, 2, None)
    assert not try_once(tmp_path, 3, None)


@pytest.mark.parametrize(
    "error",
    [Interrupted("SIGTERM"), OSError("stale"), MemoryError(), AcceleratorError("ECC"), None],
    ids=repr,
)
def test_what_the_machine_did_is_tried_again(tmp_path: Path, error: Exception | None) -> None:
    assert try_once(tmp_path, 1, error)
    assert try_once(tmp_path, 2, None)


def test_the_next_call_tries_again(tmp_path: Path) -> None:
    assert try_once(tmp_path, 1, UserError("x"))
    assert try_once(tmp_path, 1, None)
    assert try_once(tmp_path, 2, None)
    assert not (tmp_path / "work").exists()


def test_a_job_with_other_settings_is_another_job(tmp_path: Path) -> None:
    assert try_once(tmp_path, 1, UserError("x"), request=1)
    assert try_once(tmp_path, 2, None, request=2)


def test_a_mark_that_cannot_be_read_counts_for_nothing(tmp_path: Path) -> None:
    assert try_once(tmp_path, 1, UserError("x"))
    (tmp_path / "work/failed.json").write_text("{")
    assert try_once(tmp_path, 2, None)


def test_where_nobody_counts_nothing_is_noted(tmp_path: Path) -> None:
    assert try_once(tmp_path, None, UserError("x"))
    assert not (tmp_path / "work").exists()


def test_the_reason_is_reported_again(tmp_path: Path) -> None:
    try_once(tmp_path, 1, UserError("corpus: too short"))
    work = WorkFolder(tmp_path / "work", {"asked": 1})
    with pytest.raises(UserError, match=r"corpus: too short \(attempt 2 is"), attempt(work, 2):
        pass
