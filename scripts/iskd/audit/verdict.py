"""How an artifact that was made again compares with the one that lies there."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from iskd.audit.compare import Distance, compare_files
from iskd.provenance.artifact import MANIFEST, read_manifest
from iskd.provenance.environment import environment
from iskd.provenance.statement import STATEMENT_TYPE, Statement, canonical_json


class Reproduced(StrEnum):
    """How an artifact that was made again compares."""

    BITWISE = "BITWISE"
    WEIGHTS_EQUAL = "WEIGHTS_EQUAL"
    WITHIN_TOLERANCE = "WITHIN_TOLERANCE"
    DIFFERENT = "DIFFERENT"
    REFUSED = "REFUSED"
    FAILED = "FAILED"


@dataclass
class Reproduction:
    """What came of making an artifact again.

    Attributes:
        place: the artifact's folder below the study's.
        statement: sha256 of its manifest.
        verdict: how it compares.
        why: why it was refused or failed.
        tolerance: largest relative distance that passes, stated before the run.
        distances: of the files that have other bytes.
        notes: what was different about this run's surroundings.
    """

    place: str
    statement: str
    verdict: Reproduced
    tolerance: float
    why: str = ""
    distances: list[Distance] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """Give the verdict for people."""
        lines = [f"{self.verdict} {self.place}{': ' if self.why else ''}{self.why}"]
        lines += [f"  {distance}" for distance in self.distances]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def as_statement(self) -> dict[str, Any]:
        """Give the verdict for machines: a statement about the artifact's statement.

        It is evidence for whoever trusts its author: made again on this machine, with that result.
        """
        values = {**vars(self), "distances": [d.as_dict() for d in self.distances]}
        return {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": f"{self.place}/{MANIFEST}", "digest": {"sha256": self.statement}}],
            "predicateType": "urn:iskd:reproduction:v1",
            "predicate": values | {"made_in": environment()},
        }


def judge(original: Path, statement: Statement, again: Path, done: Reproduction) -> None:
    """Compare what was made with what lies there.

    Args:
        original: the artifact's folder in the study.
        statement: its statement.
        again: the folder of what was made.
        done: takes the verdict, and the distances.
    """
    made = read_manifest(again)
    if made.request != json.loads(canonical_json(statement.request)):
        keys = [key for key in made.request if made.request[key] != statement.request[key]]
        done.verdict = Reproduced.DIFFERENT
        done.why = f"the recorded config asks for other {', '.join(keys)} than its statement tells"
        return
    other = sorted(
        name
        for name in {*made.files, *statement.files}
        if made.files.get(name) != statement.files.get(name)
    )
    if not other:
        done.verdict = Reproduced.BITWISE
        return
    if all(_same_tensors(name, made, statement) for name in other):
        done.verdict = Reproduced.WEIGHTS_EQUAL
        return
    done.distances = [compare_files(original / name, again / name) for name in other]
    within = all(distance.relative <= done.tolerance for distance in done.distances)
    done.verdict = Reproduced.WITHIN_TOLERANCE if within else Reproduced.DIFFERENT


def _same_tensors(name: str, made: Statement, recorded: Statement) -> bool:
    files = made.files.get(name), recorded.files.get(name)
    tensors = [None if file is None else file.tensors for file in files]
    return tensors[0] is not None and tensors[0] == tensors[1]
