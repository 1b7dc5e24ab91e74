"""Which trackers follow a job's trainings, and where they write: from the rule to the training.

A tracker shows a training while it runs, to people. It decides on no result, so it is neither a
parameter nor part of any digest: the rule has it as a resource, and the job hands it on in a
variable of the environment, which its processes inherit.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.provenance.artifact import text_digest
from iskd.provenance.statement import canonical_json
from iskd.runtime.request import top_folder
from iskd.runtime.task import SnakemakeObject

VARIABLE = "ISKD_TRACKING"
"""The variable of the environment that tells a training what :class:`Tracking` holds."""
FOLDER = "tracking"
"""What trackers write, below ``results/<study>``."""
RESOURCE = "report_to"
NONE = "none"
BETWEEN = "+"
"""Stands between the trackers' names in the resource."""

MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""The modules that each tracker needs, one of them. The first bears the package's name."""


@dataclass(frozen=True)
class Tracking:
    """The trackers of one job.

    Attributes:
        trackers: their names, as transformers' ``report_to`` has them.
        study: the study's name.
        run: the name of the run: the study, and the artifact's place below its rule.
        folder: where they write, absolute.
        request: the digest of what defines the artifact.
    """

    trackers: tuple[str, ...]
    study: str
    run: str
    folder: str
    request: str


def missing_packages(trackers: Iterable[str]) -> list[str]:
    """Name the packages that trackers need and that are not installed here."""
    return [
        MODULES[tracker][0]
        for tracker in trackers
        if not any(_is_installed(module) for module in MODULES[tracker])
    ]


def _is_installed(module: str) -> bool:
    """Tell whether a module is a real one: a folder of its name, as trackers make, has no file."""
    found = find_spec(module)
    return found is not None and found.origin is not None


def check_packages(trackers: Iterable[str], place: str) -> None:
    """Check that the trackers' packages are there.

    Args:
        trackers: their names.
        place: what the message begins with.

    Raises:
        UserError: one is missing.
    """
    missing = missing_packages(trackers)
    if missing:
        raise UserError(
            f"{place}: not installed here: {', '.join(missing)}; "
            f"`pip install {' '.join(missing)}`, or take {'it' if len(missing) == 1 else 'them'} "
            "out of the list"
        )


def tracking_of(task: SnakemakeObject, rule: str, request: dict[str, Any]) -> Tracking | None:
    """Give the trackers of a job; None where there are none.

    Args:
        task: Snakemake's object.
        rule: the rule's own name.
        request: what defines the artifact.

    Raises:
        UserError: there is no such tracker, or its package is missing.
    """
    named = str(task.resources.get(RESOURCE, NONE)).split(BETWEEN)
    trackers = tuple(name for name in named if name != NONE)
    if not trackers:
        return None
    unknown = [name for name in trackers if name not in MODULES]
    if unknown:
        raise UserError(
            f"resource {RESOURCE}: {unknown[0]!r} is no tracker; use {', '.join(MODULES)}, "
            f"with {BETWEEN} between several"
        )
    check_packages(trackers, "tracking.report_to")
    folder = Path(task.output.manifest).parent
    results = top_folder(folder, rule) / "results"
    study, _, *place = folder.relative_to(results).parts
    return Tracking(
        trackers=trackers,
        study=study,
        run="/".join([study, *place]),
        folder=str((results / study / FOLDER).absolute()),
        request=text_digest(canonical_json(request)),
    )


def announce(tracking: Tracking | None) -> None:
    """Tell the trainings of this process, and of those that it starts, what follows them."""
    os.environ.pop(VARIABLE, None)
    if tracking is not None:
        os.environ[VARIABLE] = json.dumps(vars(tracking))


def announced() -> Tracking | None:
    """Read what :func:`announce` told."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    told = json.loads(text)
    return Tracking(**told | {"trackers": tuple(told["trackers"])})
