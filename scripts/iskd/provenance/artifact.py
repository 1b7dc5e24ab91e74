"""Publish a folder of files as one artifact: all of it or none.

An artifact is a folder with a ``manifest.json``, written last. It is built next to its place,
flushed to disk and moved there by rename, so that after a crash there is the old one, the new
one, or none. The manifest has the request and what came out, and nothing about time or place:
the same work gives the same bytes anywhere, and Snakemake, which compares small files by
checksum, stops a rerun where nothing changed (its form: ``iskd.provenance.statement``). How it
happened stands beside it in ``run.json``, which names the manifest it belongs to by digest.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from iskd.provenance.statement import (
    Produced,
    Statement,
    canonical_json,
    parse_statement,
    write_statement,
)
from iskd.provenance.tensors import tensors_digest

MANIFEST = "manifest.json"
RUN = "run.json"


def json_lines(values: Iterable[Any]) -> str:
    """Write one JSON value per line, with sorted keys and no NaN."""
    lines = (
        json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) for value in values
    )
    return "".join(f"{line}\n" for line in lines)


def file_digest(path: Path) -> str:
    """Give the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(text: str) -> str:
    """Give the sha256 of a text as it is written to a file, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def produced(path: Path) -> Produced:
    """Describe a file that an artifact consists of."""
    holds_tensors = path.suffix == ".safetensors"
    return Produced(
        file_digest(path), path.stat().st_size, tensors_digest(path) if holds_tensors else None
    )


def flush(path: Path) -> None:
    """Have a file, or a folder's entries, written to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def draft_text(path: Path, text: str) -> Path:
    """Write and flush what is to become a file's content, and give the draft beside it."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        draft.write_text(text, encoding="utf-8")
        flush(draft)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        raise
    return draft


def write_text(path: Path, text: str) -> None:
    """Replace a file's content: after a crash it holds the old text or the new."""
    draft_text(path, text).replace(path)


def input_names(
    paths: Iterable[Path], in_artifact: Callable[[Path], bool], top: Path | None = None
) -> dict[str, Path]:
    """Name the inputs of a job in its statement: its manifests, and files of no artifact.

    Args:
        paths: all files that the job reads, in their order.
        in_artifact: tells whether a file lies in an artifact, whose manifest speaks for it.
        top: the folder that holds ``results``, where this is not the working directory.
    """
    names: dict[str, Path] = {}
    for path in paths:
        if path.name == MANIFEST or not in_artifact(path):
            # An absolute path says where this machine keeps its data, not what was read.
            below = path.relative_to(top) if top and path.is_relative_to(top) else path
            shown = path.name if path.is_absolute() else below.as_posix()
            alike = sum(name.split(" #")[0] == shown for name in names)
            names[f"{shown} #{alike + 1}" if alike else shown] = path
    return names


def staging_folder(folder: Path) -> Path:
    """Make the empty folder in which an artifact is built, next to its place.

    What a dead job left behind goes: its staging folder, and an old artifact that it had moved
    aside without putting a new one in its place. Snakemake takes that one's job for unfinished.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: a job that has lost its lock must not write into its successor's folder.
    prefix = f".{folder.name}.partial"
    for left in [entry for entry in folder.parent.iterdir() if entry.name.startswith(prefix)]:
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(_moved_aside(folder), ignore_errors=True)
    draft = folder.with_name(f"{prefix}-{secrets.token_hex(4)}")
    draft.mkdir()
    return draft


def _moved_aside(folder: Path) -> Path:
    """Name the place of the old artifact while the new one is moved to its own."""
    return folder.with_name(f".{folder.name}.old")


def publish(
    draft: Path,
    folder: Path,
    *,
    request: dict[str, Any],
    summary: dict[str, Any],
    run: dict[str, Any],
) -> None:
    """Seal the files in ``draft`` with a manifest and move them to ``folder``.

    An old artifact is moved aside first, and back if the new one cannot be moved. A crash between
    the two moves leaves no artifact, which Snakemake makes again; rename alone cannot exchange
    two folders.

    Args:
        draft: the folder from :func:`staging_folder`, holding the artifact's files.
        folder: the artifact's place; what lies there is replaced.
        request: rule, wildcards, parameters, seed, inputs, code and lock that define the artifact.
        summary: the few numbers that somebody reading the manifest wants to see.
        run: how it happened: times, host, versions, device.
    """
    files = sorted(f for f in draft.rglob("*") if f.is_file())
    for file in files:
        # Some libraries write files that nobody else can read.
        file.chmod(file.stat().st_mode & 0o111 | _usual_mode())
    made = {f.relative_to(draft).as_posix(): produced(f) for f in files}
    for file in files:
        flush(file)
    text = write_statement(Statement(request, made, summary))
    write_text(draft / RUN, canonical_json(run | {"statement": text_digest(text)}))
    write_text(draft / MANIFEST, text)
    for place in [draft, *(d for d in draft.rglob("*") if d.is_dir())]:
        flush(place)
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = _moved_aside(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        draft.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _usual_mode() -> int:
    """Give the mode that a file gets from the umask."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def read_manifest(path: Path) -> Statement:
    """Read an artifact's manifest, given the file or the folder.

    Raises:
        StatementError: it is no manifest of ours.
    """
    return parse_statement((path / MANIFEST if path.is_dir() else path).read_bytes())
