"""The end of a job that went well: its artifact is published, its work folder removed."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from iskd.provenance.artifact import (
    MANIFEST,
    RUN,
    draft_text,
    file_digest,
    publish,
    read_manifest,
)
from iskd.provenance.ledger import Spent
from iskd.provenance.statement import canonical_json
from iskd.runtime.workdir import WorkFolder


def publish_draft(
    draft: Path,
    folder: Path,
    outputs: list[Path],
    *,
    work: WorkFolder,
    summary: dict[str, Any],
    run: dict[str, Any],
) -> None:
    """Publish what a script wrote, then remove what would have served to resume it.

    Args:
        draft: the folder that the script wrote into.
        folder: the artifact's folder.
        outputs: the files that the rule promises.
        work: the job's work folder.
        summary: the numbers that shall stand in the manifest.
        run: the record of this attempt, for ``run.json``.

    Raises:
        UserError: another job may make this artifact.
        RuntimeError: the script has not written all files.
    """
    work.check_held()
    _check_outputs(outputs, draft)
    in_all = work.in_all(Spent(run["seconds"], run["energy_joules"]))
    run = run | {
        "seconds_in_all": round(in_all.seconds, 3),
        "energy_joules_in_all": in_all.joules,
        "resumed_after_steps": work.resumed,
        "resumed_after_texts": work.resumed_texts,
    }
    with _copies(draft, folder, outputs):
        publish(draft, folder, request=work.request, summary=summary, run=run)
    work.remove()


def exit_if_published(
    folder: Path, work: WorkFolder, outputs: list[Path], log: logging.Logger
) -> None:
    """End the job where just its artifact is there, whole.

    Snakemake deletes a job's outputs before it starts it, so a job that an earlier Snakemake had
    started, and lost when it was killed, has gone on to its end in the meantime.

    Args:
        folder: the artifact's folder.
        work: the job's work folder.
        outputs: the files that the rule promises.
        log: gets a line about it.

    Raises:
        SystemExit: it is there; the exit code is 0.
    """
    if _is_published(folder, work.request):
        with _copies(folder, folder, outputs):
            work.remove()
        log.info("%s was published by a job that ran on", folder.as_posix())
        sys.exit(0)


def _is_published(folder: Path, request: dict[str, Any]) -> bool:
    """Tell whether an artifact lies at its place, and every file of it is what was published."""
    try:
        statement = read_manifest(folder)
        if statement.request != json.loads(canonical_json(request)):
            return False
        return all(
            file_digest(folder / name) == file.sha256 for name, file in statement.files.items()
        )
    except (OSError, ValueError):
        return False


def _check_outputs(outputs: list[Path], draft: Path) -> None:
    draft.stat()  # its being gone is another fault than a file that was not written
    missing = [
        path.name
        for path in outputs
        if path.name not in (MANIFEST, RUN) and not (draft / path.name).exists()
    ]
    if missing:
        raise RuntimeError(f"the script did not write {', '.join(missing)}")


@contextmanager
def _copies(draft: Path, folder: Path, outputs: list[Path]) -> Iterator[None]:
    """Copy files of the artifact to where the rule names an output outside of its folder.

    The copies are written before the artifact is published and get their names after it, so that
    a full disk stops both.
    """
    copies: dict[Path, Path] = {}
    try:
        for path in outputs:
            if path.parent != folder:
                path.parent.mkdir(parents=True, exist_ok=True)
                text = (draft / path.name).read_text(encoding="utf-8")
                copies[path] = draft_text(path, text)
        yield
        try:
            for path, copy in copies.items():
                copy.replace(path)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        for copy in copies.values():
            with suppress(OSError):
                copy.unlink(missing_ok=True)
