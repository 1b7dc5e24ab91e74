"""Trackers are no part of a study: choosing one makes nothing anew, and what it shows is all there.

The tracker is a module of our own under a name that transformers knows (tests/tracker_standin.py).
"""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from iskd.audit.findings import Code
from iskd.audit.verify import verify
from tests.tracker_standin import install

from .conftest import TINY, Clone

pytestmark = pytest.mark.slow

RESULTS = "results/tiny"
RUN = "toy/iskd/seed_3/step_01"
STEP = f"{RESULTS}/substitute_block/{RUN}"


@pytest.fixture
def study(finished: Clone, tmp_path: Path) -> Clone:
    """A finished study to whose config a tracker is added."""
    study = finished.copy(tmp_path / "clone")
    study.edit(
        "tests/config/tiny.yaml", "seeds: [3]\n", "seeds: [3]\ntracking: {report_to: [trackio]}\n"
    )
    return study


def rows(study: Clone) -> list[dict[str, Any]]:
    text = (study.folder / RESULTS / "tracking/trackio/rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_tracker_reruns_nothing_and_sees_the_next_training(study: Clone, tmp_path: Path) -> None:
    packages = {"PYTHONPATH": str(install(tmp_path / "packages"))}
    done = study.snakemake("-n", *TINY, **packages)
    assert "Nothing to be done" in done.stdout + done.stderr

    before = study.files(STEP)
    shutil.rmtree(study.folder / STEP)
    done = study.snakemake(f"{STEP}/manifest.json", *TINY, **packages)
    assert done.returncode == 0, done.stderr[-4000:]
    after = study.files(STEP)
    assert [name for name in before if after[name] != before[name]] == ["run.json"]

    seen, history = rows(study), (study.folder / STEP / "history.jsonl").read_text().splitlines()
    assert [row["event"] for row in seen] == ["init", *["log"] * len(history), "finish"]
    assert seen[0] == {"event": "init", "project": "tiny", "run": f"tiny/{RUN}"}
    assert [row["train/loss"] for row in seen[1:-1]] == [json.loads(x)["loss"] for x in history]

    done = study.snakemake("-n", *TINY, **packages)
    assert "Nothing to be done" in done.stdout + done.stderr
    config = study.folder / "tests/config/tiny.yaml"
    found = verify(study.folder / RESULTS, config=config, derive=False).findings
    # What the step's followers were made of is younger than they are; the tracker's files are none.
    assert {finding.code for finding in found} == {Code.TIME_ORDER}


@pytest.mark.skipif(find_spec("trackio") is not None, reason="trackio is installed")
def test_a_missing_package_is_reported_by_a_dry_run(study: Clone) -> None:
    done = study.snakemake("-n", *TINY)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "tests/config/tiny.yaml: tracking.report_to: not installed here: trackio; "
        "`pip install trackio`, or take it out of the list"
    )
    assert "Traceback" not in done.stderr
