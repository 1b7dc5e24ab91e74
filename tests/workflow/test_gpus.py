"""On a machine with a GPU jobs take turns at it."""

import json
import shutil
from datetime import datetime
from pathlib import Path

from tests.workflow.conftest import TINY, Clone

# The clone's devices: this machine may have no GPU.
DEVICES = "scripts/iskd/devices.py"
SHORTER = 2.0
"""Seconds by which two jobs that take turns may seem to overlap: starts are in whole ones."""


def test_two_jobs_take_turns_at_one_gpu(finished: Clone, tmp_path: Path) -> None:
    study = finished.copy(tmp_path / "clone")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    study.edit(DEVICES, 'Path("/dev")', f'Path("{tmp_path}/dev")')
    folders = sorted((study.folder / "results/tiny/evaluate").rglob("manifest.json"))[:2]
    targets = [path.relative_to(study.folder).as_posix() for path in folders]
    for path in folders:
        shutil.rmtree(path.parent)
    done = study.snakemake(*TINY, "--", *targets)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = [json.loads((study.folder / t).with_name("run.json").read_text()) for t in targets]
    runs.sort(key=lambda run: run["started"])
    first, second = (datetime.fromisoformat(run["started"]).timestamp() for run in runs)
    assert second - first > runs[0]["seconds"] - SHORTER
