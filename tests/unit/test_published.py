"""What README.md and docs/ quote of a study is what the study's kept rows say."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tools import published
from tools.published import ROOT, RUNS, publish, stale, table

from iskd.errors import UserError

PAGES = [page.relative_to(ROOT).as_posix() for page, _ in published.pages()]
KEPT = sorted(path.stem for path in (ROOT / RUNS).glob("*.json"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is published."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def test_the_readme_quotes_a_kept_run() -> None:
    assert "README.md" in PAGES
    assert not stale()


def test_a_number_that_was_typed_is_found(checkout: Path) -> None:
    page = checkout / "README.md"
    text = page.read_text(encoding="utf-8")
    number = re.findall(r"\d\.\d{3} ±", text)[0]
    page.write_text(text.replace(number, "0.001 ±", 1), encoding="utf-8")
    assert stale(checkout) == [f"README.md: a table is not what {RUNS} has"]


def test_a_picture_of_another_run_is_found(checkout: Path) -> None:
    facts = json.loads((checkout / RUNS / f"{KEPT[0]}.json").read_text(encoding="utf-8"))
    (picture,) = facts["pictures"]
    with (checkout / "docs" / picture).open("ab") as file:
        file.write(b"\0")
    assert stale(checkout) == [f"docs/{picture}: not the one of {RUNS / f'{KEPT[0]}.json'}"]


@pytest.mark.parametrize("run", KEPT)
def test_a_picture_carries_the_digest_that_its_statement_has(run: str) -> None:
    facts = json.loads((ROOT / RUNS / f"{run}.json").read_text(encoding="utf-8"))
    for picture, about in facts["pictures"].items():
        carried = re.findall(
            rb"iskd-request:([0-9a-f]{64})", (ROOT / "docs" / picture).read_bytes()
        )
        assert carried == [about["request"].encode()]


@pytest.mark.parametrize("run", KEPT)
def test_kept_rows_are_rows_of_the_runs_metrics(run: str) -> None:
    metrics = ROOT / "results" / run / "metrics.csv"
    if not metrics.is_file():
        pytest.skip(f"the run is not here: {metrics.relative_to(ROOT)}")
    facts = json.loads((ROOT / RUNS / f"{run}.json").read_text(encoding="utf-8"))
    if published.file_digest(metrics) != facts["metrics"]["sha256"]:
        pytest.skip(f"{metrics.relative_to(ROOT)} is of another run")
    kept = (ROOT / RUNS / f"{run}.csv").read_text(encoding="utf-8").splitlines()
    assert set(kept) <= set(metrics.read_text(encoding="utf-8").splitlines())


def test_an_arm_that_the_run_has_not_ends_in_one_line() -> None:
    what = {"run": KEPT[0], "columns": ["heldout/loss"], "arms": {"nobody": "Nobody"}}
    with pytest.raises(UserError, match="there is no arm nobody"):
        table(what)


def test_a_study_that_has_not_ended_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises((UserError, FileNotFoundError), match=r"metrics\.csv"):
        publish(tmp_path, tmp_path)
