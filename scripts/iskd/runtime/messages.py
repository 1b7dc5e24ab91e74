"""What a job and its processes tell each other, as JSON files in a temporary folder."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from iskd.provenance.artifact import write_text
from iskd.provenance.statement import canonical_json

ASSIGNMENT = "assignment.json"
ALIVE = "alive"
"""A pipe that the job holds open. Who waits for something to read from it wakes when it dies."""


@dataclass
class Assignment:
    """The description of a job for its processes; a script finds it in place of ``snakemake``.

    ``request`` is what defines the artifact; ``out`` and ``work`` are folders of the job.
    """

    script: str
    rule: str
    params: dict[str, Any]
    wildcards: dict[str, str]
    inputs: dict[str, Any]
    threads: int
    log: str | None
    request: dict[str, Any]
    out: str
    work: str
    started: float
    processes: int
    parallel: str
    # What the script gives back; only the first process's counts.
    summary: dict[str, Any] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Write the assignment where the processes read it."""
        path = folder / ASSIGNMENT
        write_text(path, canonical_json(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> "Assignment":
        """Read what :meth:`write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


@dataclass
class Report:
    """How one process ended.

    ``end`` is ``done``, ``again`` (it was asked to stop and saved its state), ``user`` (a user's
    mistake), ``failed``, ``machine`` (it failed, and may not on another attempt), or
    ``terminated`` (a signal ended it outside of a training, maybe because another process had
    died). ``run`` is the record that goes into ``run.json``.
    """

    rank: int
    end: str
    message: str = ""
    ended: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    resumed: list[int] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the report where the job reads it."""
        write_text(folder / f"report-{self.rank}.json", canonical_json(asdict(self)))

    @classmethod
    def read_all(cls, folder: Path) -> "list[Report]":
        """Read what there is, in the order of ranks."""
        files = folder.glob("report-*.json")
        reports = [cls(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
        return sorted(reports, key=lambda report: report.rank)
