"""What a study must consist of, derived from its config by this checkout's workflow."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iskd.errors import UserError
from iskd.provenance.artifact import MANIFEST
from iskd.provenance.environment import CHECKOUT, PLAN


@dataclass(frozen=True)
class Planned:
    """One artifact that the study has.

    Attributes:
        place: its folder below the study's.
        request: ``rule``, ``wildcards``, ``parameters``, ``seed``, ``code``.
        inputs: the files that its job reads, by what they are to it.
        files: that its job promises to write into its folder, the manifest left out; a model's
            folder holds a few more.
        copies: files that its job writes outside of its folder, below the study's; each is a copy
            of the file of this name in it.
    """

    place: str
    request: dict[str, Any]
    inputs: dict[str, str | list[str]]
    files: list[str]
    copies: list[str]

    @property
    def read(self) -> list[Path]:
        """All files that the job reads, in their order."""
        parts = ([v] if isinstance(v, str) else v for v in self.inputs.values())
        return [Path(name) for part in parts for name in part]


class Planning:
    """The workflow's own plan of a study, made in a process of its own."""

    def __init__(self, config: Path | str) -> None:
        """Start to plan.

        Args:
            config: a config file, or the text of one.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="iskd-plan-")
        place = Path(self._folder.name)
        file = place / "config.yaml"
        if isinstance(config, str):
            file.write_text(config, encoding="utf-8")
        else:
            file = config.resolve()
        # An empty folder: what is there must not decide on what has to be there.
        empty = place / "empty"
        empty.mkdir()
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, str(CHECKOUT / PLAN), str(file)],
            cwd=empty,
            env={**os.environ, "ISKD_PLAN_ONLY": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> dict[str, Planned]:
        """Wait for the plan.

        Returns:
            what the study has, by place

        Raises:
            UserError: the workflow cannot plan this config.
        """
        printed, errors = self._process.communicate()
        self._folder.cleanup()
        if self._process.returncode != 0:
            last = [line for line in errors.splitlines() if line.strip()][-1:]
            raise UserError(f"the study's config cannot be planned: {' '.join(last)}")
        plan: dict[str, Planned] = {}
        for job in json.loads(printed):
            place = "/".join(Path(job["manifest"]).parts[2:-1])
            request = {key: job[key] for key in ("rule", "wildcards", "parameters", "seed", "code")}
            outputs = ["/".join(Path(name).parts[2:]) for name in job["outputs"]]
            files = [name.removeprefix(f"{place}/") for name in outputs]
            files = [name for name in files if "/" not in name and name != MANIFEST]
            copies = [name for name in outputs if name.rpartition("/")[0] != place]
            copies = [name for name in copies if not name.startswith("benchmarks/")]
            plan[place] = Planned(place, request, job["inputs"], files, copies)
        return plan
