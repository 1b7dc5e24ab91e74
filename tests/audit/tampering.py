"""A copy of the finished study's results, and what a forger or an accident does to it."""

import json
import os
from pathlib import Path
from typing import Any

from iskd.audit.findings import Code
from iskd.audit.planned import Planned, Planning
from iskd.audit.verify import Verdict, verify
from iskd.provenance.artifact import MANIFEST, RUN, file_digest, produced, read_manifest
from iskd.provenance.statement import Statement, canonical_json, write_statement

RESULTS = "results/tiny"


class Results:
    """A copy of the finished study's results, to be tampered with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def rewrite(self, place: str, **changes: Any) -> None:
        """Write an artifact's statement anew, about the files that lie there, as a forger would."""
        old = read_manifest(self / place)
        files = changes.pop("files", None)
        if files is None:
            files = {name: produced(self / f"{place}/{name}") for name in old.files}
        request = json.loads(canonical_json(old.request)) | changes.pop("request", {})
        text = write_statement(Statement(request, files, changes.pop("summary", old.summary)))
        assert not changes
        (self / place / MANIFEST).write_text(text, encoding="utf-8")
        self.adopt(place)

    def adopt(self, place: str) -> None:
        """Have run.json say that it is about the manifest that lies there."""
        run = json.loads((self / place / RUN).read_text(encoding="utf-8"))
        run["statement"] = file_digest(self / place / MANIFEST)
        (self / place / RUN).write_text(canonical_json(run), encoding="utf-8")

    def codes(self, **how: Any) -> set[tuple[str, Code]]:
        """Verify, and give the kinds of findings with the artifact that each is about."""
        places = [path.parent.relative_to(self.folder) for path in self.folder.rglob(MANIFEST)]
        known = sorted((p.as_posix() for p in places), key=len, reverse=True)
        return {
            (next((p for p in known if f.place.startswith(p)), f.place), f.code)
            for f in self.verdict(**how).findings
        }

    def verdict(self, **how: Any) -> Verdict:
        return verify(self.folder, **{"derive": False, **how})


PLANS: dict[str, dict[str, Planned]] = {}


class PlannedOnce(Planning):
    """A study's plan, asked for once: it takes Snakemake two seconds, and fifty tests want it."""

    def __init__(self, config: Path | str) -> None:
        self._text = config if isinstance(config, str) else config.read_text(encoding="utf-8")
        if self._text not in PLANS:
            super().__init__(config)

    def finish(self) -> dict[str, Planned]:
        if self._text not in PLANS:
            PLANS[self._text] = super().finish()
        return PLANS[self._text]


def flip(path: Path, at: int = -1) -> None:
    """Change one byte and leave the file's times alone."""
    about = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
