"""A study's folder of results, as an auditor finds it: files, statements, and reports of runs."""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST, RUN, file_digest
from iskd.provenance.statement import (
    MAX_BYTES,
    Statement,
    StatementError,
    parse_statement,
    safe_name,
)

# What stands beside the artifacts: how jobs went, and who fetched what.
BESIDE = ("logs", "benchmarks", "audit", "tracking")
LOCKS = ("hub.lock.json",)
SIGNATURE = "signature.dsse.json"
# What `iskd export` adds.
CRATE = "ro-crate-metadata.json"
CHECKLIST = "reproducibility.md"
CODE = "code"
CONFIG = f"{CODE}/config/config.yaml"
# One file of weights, or the shards of a larger model.
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
PAPER = "paper"
"""The artifact whose statement records the study's config."""
METRICS = "collect_metrics"
"""The artifact that all numbers follow from; its statement's digest is the study's root."""


def weights_in(names: Iterable[str]) -> list[str]:
    """List which of an artifact's files hold a model's weights."""
    return [name for name in sorted(names) if _WEIGHTS.fullmatch(name)]


@dataclass
class Found:
    """One artifact as it lies there.

    Attributes:
        place: its folder below the study's.
        statement: what its manifest says; None where there is none that can be read.
        digest: sha256 of the manifest.
        run: what its ``run.json`` says; None where there is none that can be read.
        files: sizes of its files by their path below its folder, manifest and run.json left out.
        wrong: what is wrong with the manifest; empty where nothing is.
    """

    place: str
    statement: Statement | None = None
    digest: str = ""
    run: dict[str, Any] | None = None
    files: dict[str, int] = field(default_factory=dict)
    wrong: str = ""


class StudyFolder:
    """What lies in ``results/<study>``.

    Attributes:
        path: the folder.
        name: the study's, as statements have it in their inputs' names; not always the folder's.
        artifacts: by place.
        loose: files of no artifact, by their path below the folder.
        links: what is neither file nor folder, or a file with a second name.
    """

    def __init__(self, path: Path) -> None:
        _check_there(path)
        self.path = path
        self.artifacts: dict[str, Found] = {}
        self.loose: dict[str, int] = {}
        self.links: list[str] = []
        sizes = dict(self._walk(path, ""))
        places = [name.rpartition("/")[0] for name in sizes if name.rpartition("/")[2] == MANIFEST]
        for place in sorted(places):
            self.artifacts[place] = self.read_one(path, place)
        for name, size in sorted(sizes.items()):
            owner = self._place_of(name)
            if owner is None:
                self.loose[name] = size
            elif (own := name[len(owner) + 1 :]) not in (MANIFEST, RUN):
                self.artifacts[owner].files[own] = size

        self.name = self._recorded_name() or path.resolve().name

    def _recorded_name(self) -> str | None:
        """Give the name by which the study's own numbers know it."""
        found = self.artifacts.get(METRICS)
        try:
            name = found.statement.request["parameters"]["study"]  # type: ignore[union-attr]
        except (AttributeError, KeyError, TypeError):
            return None
        return name if isinstance(name, str) else None

    def _walk(self, folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            name = f"{prefix}{entry.name}"
            if entry.is_symlink():
                self.links.append(name)
            elif entry.is_dir(follow_symlinks=False):
                # Work in hand: drafts, and what a killed job needs to go on.
                if not entry.name.startswith(".") and name not in BESIDE:
                    yield from self._walk(Path(entry.path), f"{name}/")
            else:
                about = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
                    self.links.append(name)
                if stat.S_ISREG(about.st_mode):
                    yield name, about.st_size

    def _place_of(self, name: str) -> str | None:
        """Find the artifact that a file lies in: the innermost folder with a manifest."""
        folder = name
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            if folder in self.artifacts:
                return folder
        return None

    @staticmethod
    def read_one(path: Path, place: str) -> Found:
        """Read one artifact's statement and report, and not which files it has."""
        found = Found(place)
        manifest, run = path / place / MANIFEST, path / place / RUN
        try:
            if manifest.stat().st_size > MAX_BYTES:
                raise StatementError("is longer than any statement")
            found.digest = file_digest(manifest)
            found.statement = parse_statement(manifest.read_bytes())
        except (OSError, StatementError) as error:
            found.wrong = str(error)
        try:
            report = json.loads(run.read_bytes()) if run.stat().st_size <= MAX_BYTES else None
            found.run = report if isinstance(report, dict) else None
        except (OSError, ValueError, RecursionError):
            pass
        return found

    def below(self, name: str) -> str | None:
        """Give an input's path below the folder; None where it lies elsewhere, or leads out of it.

        Args:
            name: as a statement has it: ``results/<study>/...`` or the name of a local file, with
                a number behind it where a job reads it under several names.
        """
        top = f"results/{self.name}/"
        plain = re.sub(r" #\d+$", "", name)
        if not plain.startswith(top):
            return None
        try:
            return safe_name(plain.removeprefix(top))
        except ValueError:
            return None

    def source(self, name: str) -> str | None:
        """Give the place of the artifact whose manifest an input is; None where it is no manifest.

        Args:
            name: as in :meth:`below`.
        """
        below = self.below(name)
        ending = f"/{MANIFEST}"
        return below.removesuffix(ending) if below and below.endswith(ending) else None


def _check_there(path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; name one as results/<study>")


def recorded_config(path: Path) -> str:
    """Read the config that a study was made with, from the statement of its paper folder.

    Raises:
        UserError: there is none.
    """
    _check_there(path)
    found = StudyFolder.read_one(path, PAPER)
    config = (
        None if found.statement is None else found.statement.request["parameters"].get("config")
    )
    if not isinstance(config, str):
        raise UserError(
            f"{path}: {PAPER}/manifest.json does not tell the study's config; "
            f"give it with --configfile"
        )
    return config
