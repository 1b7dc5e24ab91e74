"""Artifacts made again in a clean folder: the same to the bit, and what hides is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from iskd.audit.reproduce import choose
from iskd.cli import main
from tests.workflow.conftest import Clone, make_clone

from .tampering import RESULTS, Results

# That each kind of artifact is the same again: tests/integration/test_embedded_study.py.
pytestmark = pytest.mark.slow

WORLD = "make_toyworld"


def test_what_saves_nothing_cannot_be_killed_in_its_middle(
    finished: Clone, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", str(finished.folder / RESULTS / WORLD), "--twin", "resume"]
    assert main(command) == 2
    assert "before it had saved anything to go on from" in capsys.readouterr().out


def test_what_cannot_be_the_same_or_made_here_is_refused(
    finished: Clone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / RESULTS
    shutil.copytree(finished.folder / RESULTS, study)
    assert main(["reproduce", str(study / "measure_efficiency/toy/l1/seed_3/step_02")]) == 2
    weights = study / "pretrain_teacher/toy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert main(["reproduce", str(study / "prune_l1/toy/l1/seed_3/step_02")]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("REFUSED measure_efficiency/")
    assert "measures times" in lines[0]
    assert "model.safetensors of its input" in lines[1]
    assert "is not here as it was" in lines[1]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rule": "../evil"}, "has no rule '../evil'"),
        ({"inputs": {f"{RESULTS}/../../secret": {"sha256": "1" * 64}}}, "not in the study"),
        ({"code": "0123456789abcdef"}, "neither this checkout nor commit"),
    ],
)
def test_a_statement_that_leads_elsewhere_is_refused(
    changes: dict[str, Any],
    why: str,
    finished: Clone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = tmp_path / RESULTS
    shutil.copytree(finished.folder / RESULTS, study)
    (tmp_path / "secret").write_text("not yours")
    Results(study).rewrite(WORLD, request=changes)
    assert main(["reproduce", str(study / WORLD)]) == 2
    out = capsys.readouterr().out
    assert out.startswith(f"REFUSED {WORLD}: ")
    assert why in out or "names no commit" in out


# What may hide in a script, and how that ends.
HIDDEN = {
    "an undeclared input": (
        '(job.out / "train.jsonl").write_text(open("hidden.txt").read())',
        "FAILED",
    ),
    "a variable of the environment": (
        'import os; (job.out / "train.jsonl").write_text(os.environ.get("HIDDEN", "none"))',
        "DIFFERENT",
    ),
    "an unseeded draw": (
        'import secrets; (job.out / "train.jsonl").write_text(secrets.token_hex())',
        "DIFFERENT",
    ),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_29_30_31_what_hides_in_a_script_is_found(what: str, tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    line, verdict = HIDDEN[what]
    script = clone.folder / "scripts/make_toyworld.py"
    script.write_text(script.read_text(encoding="utf-8") + f"    {line}\n", encoding="utf-8")
    (clone.folder / "hidden.txt").write_text("only here")
    options = ("--configfile", "tests/config/tiny.yaml", "-c", "2")
    done = clone.snakemake(f"{RESULTS}/{WORLD}/manifest.json", *options, HIDDEN="there")
    assert done.returncode == 0, done.stderr[-2000:]
    again = clone.iskd("reproduce", f"{RESULTS}/{WORLD}", "--configfile", options[1], "--json")
    assert again.returncode == 1, again.stdout + again.stderr
    assert json.loads(again.stdout)["predicate"]["verdict"] == verdict


def test_a_spot_check_draws_from_all_rules(finished: Clone) -> None:
    study = finished.folder / RESULTS
    drawn = choose(study, 12, seed=1)
    assert drawn == choose(study, 12, seed=1)
    assert drawn != choose(study, 12, seed=2)
    assert len({place.split("/")[0] for place in drawn}) == 12
    assert len(choose(study, 1000, seed=1)) > 50
