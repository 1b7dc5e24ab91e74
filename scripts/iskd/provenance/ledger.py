"""What all attempts at one artifact have taken, those that were killed included.

``run.json`` of an artifact would know of the last attempt alone. The ledger lies in the work folder
with what that attempt went on from: it is written whenever a state or answers are kept, and when
the job is asked to stop. A kill loses what came after, as it does of the work itself.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iskd.provenance.artifact import write_text
from iskd.provenance.statement import canonical_json

PREFIX = "attempts-"
STATE_SECONDS = "ISKD_STATE_SECONDS"
"""Environment variable: seconds of training between two states; 600 where it is not set."""


@dataclass(frozen=True)
class Spent:
    """What an attempt has taken: seconds by the clock, and joules where they are known."""

    seconds: float
    joules: float | None


class Ledger:
    """The attempts at one artifact so far.

    Args:
        folder: the job's work folder.
        request: what defines the artifact; attempts at another one do not count.
        spent: tells what this attempt has taken until now.
    """

    def __init__(self, folder: Path, request: dict[str, Any], spent: Callable[[], Spent]) -> None:
        digest = hashlib.sha256(canonical_json(request).encode()).hexdigest()
        self.path = folder / f"{PREFIX}{digest[:16]}.json"
        self.spent = spent
        self.before = self._read()

    def _read(self) -> list[Spent]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            return [Spent(float(entry["seconds"]), entry["joules"]) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def note(self) -> None:
        """Write down what this attempt has taken until now; a full disk is reported elsewhere."""
        entries = [asdict(spent) for spent in [*self.before, self.spent()]]
        with suppress(OSError):
            write_text(self.path, canonical_json(entries))

    def in_all(self, last: Spent) -> Spent:
        """Add up all attempts, of which this is the last; joules are known where each one's are."""
        spent = [*self.before, last]
        joules = [attempt.joules for attempt in spent if attempt.joules is not None]
        return Spent(
            sum(attempt.seconds for attempt in spent),
            sum(joules) if len(joules) == len(spent) else None,
        )
