"""Artifacts that have lost a file, put aside so that they are made again.

Snakemake asks for the files that a rule names. An artifact holds more of them, by the size of its
model and by what its teacher had; only its manifest knows.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from iskd.provenance.artifact import MANIFEST, read_manifest

INCOMPLETE = ".manifest.json.incomplete"
"""The name of the manifest of an artifact that lacks a file."""


def put_aside_incomplete(results: Path) -> list[Path]:
    """Take the manifest from every artifact that lacks a file, and give it back when that is there.

    Without its manifest Snakemake makes an artifact again; nothing is deleted.

    Args:
        results: a study's folder of results.

    Returns:
        the files that are missing
    """
    missing = []
    for manifest in list(_manifests(results)):
        try:
            lost = _lost(manifest)
        except (OSError, ValueError):
            continue  # no manifest of ours
        # A job that has outlived its Snakemake may put a new artifact there in this moment.
        with suppress(FileNotFoundError):
            if lost and manifest.name == MANIFEST:
                aside = manifest.rename(manifest.with_name(INCOMPLETE))
                lost = _lost(aside)
                if not lost:
                    aside.rename(manifest)
            elif not lost and manifest.name == INCOMPLETE:
                if manifest.with_name(MANIFEST).exists():
                    manifest.unlink()
                else:
                    manifest.rename(manifest.with_name(MANIFEST))
        missing += lost
    return missing


def _lost(manifest: Path) -> list[Path]:
    """List the files that a manifest names and that are not beside it."""
    named = (manifest.parent / name for name in read_manifest(manifest).files)
    return [file for file in named if not file.exists()]


def _manifests(results: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(results):
        # Work in hand: drafts, and what a killed job needs to go on.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(top, name) for name in (MANIFEST, INCOMPLETE) if name in files)
