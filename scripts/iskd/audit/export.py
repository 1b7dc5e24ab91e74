"""What a study gives to tools and readers that know nothing of its statements.

``ro-crate-metadata.json`` (a Provenance Run Crate), ``reproducibility.md`` (a filled checklist) and
``code/`` (what the study was made by), all of it derived from statements and reports, so that a
verification can derive it again and compare.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iskd.audit.checklist import checklist
from iskd.audit.code import UnavailableError, recorded_code
from iskd.audit.crate import crate, licence_of
from iskd.audit.findings import Code, Finding
from iskd.audit.folder import CHECKLIST, CODE, CONFIG, CRATE, PAPER, StudyFolder, recorded_config
from iskd.errors import UserError
from iskd.provenance.artifact import write_text
from iskd.provenance.environment import code_files, tree_digest
from iskd.provenance.statement import MAX_BYTES, canonical_json


def is_exported(name: str) -> bool:
    """Tell whether a file, by its path below the study's folder, is one that an export writes."""
    return name in (CRATE, CHECKLIST) or name.startswith(f"{CODE}/")


def export(path: Path, licence: str) -> None:
    """Write all of it; what an earlier export wrote is replaced.

    Args:
        path: the study's folder; verify it first.
        licence: of the results, a URL or in words.

    Raises:
        UserError: the code that the study was made by is not to be had here, or the study does not
            tell its config.
    """
    folder = StudyFolder(path)
    config, run = recorded_config(path), folder.artifacts[PAPER].run
    with tempfile.TemporaryDirectory(prefix="iskd-export-") as scratch:
        code = Path(scratch, CODE)
        code.mkdir()
        try:
            recorded_code(run or {}, code)
        except UnavailableError as error:
            raise UserError(f"{path}: its code cannot be exported: {error}") from error
        shutil.rmtree(path / CODE, ignore_errors=True)
        shutil.copytree(code, path / CODE)
    (path / CONFIG).parent.mkdir()
    write_text(path / CONFIG, config)
    write_text(path / CHECKLIST, checklist(folder, config, licence))
    # Last: where it lies, all of it does. It describes the code too, as it lies there now.
    write_text(path / CRATE, canonical_json(crate(StudyFolder(path), licence)))


def check(folder: StudyFolder) -> Iterator[Finding]:
    """Compare an export, where there is one, with what the statements give today."""
    if CRATE not in folder.loose:
        return
    try:
        yield from _compared(folder)
    # What lies there is anybody's.
    except Exception as error:
        message = f"nothing can be exported from what lies here: {type(error).__name__}: {error}"
        yield Finding(CRATE, Code.EXPORT, " ".join(message.split()))


def _compared(folder: StudyFolder) -> Iterator[Finding]:
    wrong = Code.EXPORT
    top, run = folder.path / CODE, folder.artifacts[PAPER].run or {}
    if tree_digest(top) != run.get("code"):
        yield Finding(CODE, wrong, "it is not the code that the study was made by")
    known = {*(f"{CODE}/{name}" for name in code_files(top)), CONFIG, CRATE, CHECKLIST}
    for name in folder.loose:
        if is_exported(name) and name not in known:
            yield Finding(name, wrong, "no export writes it")
    config = recorded_config(folder.path)
    licence = None
    if folder.loose[CRATE] <= MAX_BYTES:
        licence = licence_of((folder.path / CRATE).read_bytes())
    if licence is None:
        yield Finding(CRATE, wrong, "it cannot be read, or states no licence")
        return
    wanted = {CONFIG: config, CHECKLIST: checklist(folder, config, licence)}
    missing = [name for name in wanted if name not in folder.loose]
    for name in missing:
        yield Finding(name, wrong, "the export lacks it")
    if not missing:
        wanted[CRATE] = canonical_json(crate(folder, licence))
    for name, text in wanted.items():
        if name not in missing and (folder.path / name).read_bytes() != text.encode():
            yield Finding(name, wrong, "the statements give another one")
