"""Tell a job that was killed from one that failed by its own fault, across a scheduler's retries.

A cluster's profile retries what fails, because of preemption, time limits and dying nodes. The same
mistake would fail the same way each time, on a GPU that others wait for.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from iskd.errors import UserError
from iskd.provenance.artifact import write_text
from iskd.provenance.statement import canonical_json
from iskd.runtime.signals import Interrupted
from iskd.runtime.workdir import WorkFolder

_MARK = "failed.json"
# A machine's fault rather than the job's: another node may do better. By name, without torch.
_OF_THE_MACHINE = ("AcceleratorError", "DistBackendError", "DistNetworkError")


@contextmanager
def attempt(work: WorkFolder, number: int | None) -> Iterator[None]:
    """Make one attempt at a job, while its work folder's lock is held.

    Args:
        work: the job's work folder, where a failure is noted for the next attempt.
        number: the scheduler's number of this attempt, from 1; None where nobody counts.

    Raises:
        UserError: an attempt before this one failed by its own fault.
    """
    if number is None:
        yield
        return
    mark = work.path / _MARK
    message = _failure(work) if number > 1 else None
    if message:
        raise UserError(f"{message} (attempt {number} is not made: it would fail the same way)")
    mark.unlink(missing_ok=True)
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if not is_of_the_machine(error):
            message = (
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            with suppress(OSError):
                write_text(mark, canonical_json({"asked": work.request, "message": message}))
        raise


def is_of_the_machine(error: Exception) -> bool:
    """Tell whether an error may not come back on another attempt."""
    return isinstance(error, OSError | MemoryError) or type(error).__name__ in _OF_THE_MACHINE


def _failure(work: WorkFolder) -> str | None:
    """Read why the same job failed before."""
    try:
        mark: dict[str, Any] = json.loads((work.path / _MARK).read_text(encoding="utf-8"))
        return str(mark["message"]) if mark["asked"] == _as_json(work.request) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _as_json(value: dict[str, Any]) -> Any:
    return json.loads(canonical_json(value))
