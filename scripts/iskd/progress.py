"""How far a job is: a bar on a terminal, or a note for the screen that shows the whole study."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from tqdm import tqdm

NOTES = "ISKD_PROGRESS"
"""Environment variable: the folder in which jobs note how far they are, where a screen reads it."""
# Seconds between two notes: a screen is drawn twice a second.
_PACE = 0.5
# Seeds and steps are numbers alone; the others say what they are.
_NUMBERED = ("seed", "step")

_job = ""


def job_name(rule: str, wildcards: Mapping[str, Any]) -> str:
    """Name a job by its rule and what distinguishes it: model, task, seed and step."""
    parts = [
        f"{key}_{value}" if key in _NUMBERED else str(value) for key, value in wildcards.items()
    ]
    return f"{rule} {'/'.join(parts)}".strip()


def name_job(name: str) -> None:
    """Say which job this process works for: its bars carry the name."""
    global _job  # noqa: PLW0603 - one process is one job
    _job = name


@dataclass(frozen=True)
class Note:
    """How far one loop of a job is.

    Attributes:
        job: see :func:`job_name`.
        what: what the loop does.
        done: how many of `total`.
        total: how many there are.
        before: how many were done when this process began.
        seconds: since this process began.
        unit: name of one of them.
    """

    job: str
    what: str
    done: int
    total: int
    before: int
    seconds: float
    unit: str

    @property
    def left(self) -> float | None:
        """Seconds that the loop still needs; None where its first round has not ended."""
        fresh = self.done - self.before
        return self.seconds / fresh * max(0, self.total - self.done) if fresh > 0 else None

    def as_text(self) -> str:
        """Say it in a few words, with the time left where it can be told."""
        share = f"{self.what} {100 * self.done // max(1, self.total)} %"
        left = self.left
        if not left:
            return share
        return f"{share}, {left:.0f} s left" if left < 90 else f"{share}, {left / 60:.0f} min left"


def read_notes(folder: Path) -> dict[str, Note]:
    """Give the newest note of each job that is in a loop, by the job's name."""
    notes: dict[str, Note] = {}
    try:
        files = sorted(folder.glob("*.json"))
    except OSError:
        return notes
    for file in files:
        try:
            note = Note(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue  # it is being written, or has just gone
        notes[note.job] = note
    return notes


class Bar:
    """What a loop tells of its progress; use it as a context manager, or close it.

    It is a note where a screen shows the whole study (:data:`NOTES`), a bar on a terminal, and
    nothing elsewhere.

    Args:
        total: what will have been done at the end.
        what: what is shown in front of it.
        done: what was done before.
        unit: name of one of them.
    """

    def __init__(self, total: int, what: str, *, done: int = 0, unit: str = "step") -> None:
        self.total, self.n = total, done
        self._what, self._unit, self._before = what, unit, done
        self._began = self._noted = time.monotonic()
        self._file: Path | None = None
        self._bar: tqdm[NoReturn] | None = None
        if folder := os.environ.get(NOTES):
            self._file = Path(folder, f"{os.getpid()}.json")
            self._note()
        else:
            # Several jobs at a time share the terminal's last line; none leaves its bar behind.
            self._bar = tqdm(
                total=total,
                desc=f"{_job}: {what}" if _job else what,
                initial=done,
                unit=unit,
                file=sys.stderr,
                disable=None,
                leave=False,
                dynamic_ncols=True,
            )

    def update(self, count: int = 1) -> None:
        """Add what has been done since the last call."""
        self.n += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._noted >= _PACE:
            self._note()

    def close(self) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            try:
                self._file.unlink(missing_ok=True)
            except OSError:
                self._file = None

    def __enter__(self) -> Self:
        """Give the bar itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        del kind, error, trace
        self.close()

    def _note(self) -> None:
        self._noted = time.monotonic()
        if self._file is None:
            return
        spent = self._noted - self._began
        note = Note(_job, self._what, self.n, self.total, self._before, spent, self._unit)
        try:
            self._file.write_text(json.dumps(asdict(note)), encoding="utf-8")
        except OSError:
            self._file = None  # the screen has gone with its Snakemake; the job goes on


def bar(total: int, what: str, *, done: int = 0, unit: str = "step") -> Bar:
    """Open a bar; see :class:`Bar`."""
    return Bar(total, what, done=done, unit=unit)
