"""Artifacts that have lost a file, put aside so that they are made again.

Snakemake asks for the files that a rule names. An artifact holds more of them, by the size of its
model and by what its teacher had; only its manifest knows.
"""

import os
from collections.abc import Iterator
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
        folder = manifest.parent
        try:
            names = list(read_manifest(manifest).files)
        except (OSError, ValueError):
            continue  # no manifest of ours
        lost = [folder / name for name in names if not (folder / name).exists()]
        missing += lost
        if lost and manifest.name == MANIFEST:
            manifest.rename(folder / INCOMPLETE)
        elif not lost and manifest.name == INCOMPLETE:
            if (folder / MANIFEST).exists():
                manifest.unlink()
            else:
                manifest.rename(folder / MANIFEST)
    return missing


def _manifests(results: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(results):
        # Work in hand: drafts, and what a killed job needs to go on.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(top, name) for name in (MANIFEST, INCOMPLETE) if name in files)
