"""Every number of a finished study again, by code of its own."""

import base64
import re
from pathlib import Path

import pytest

from iskd.provenance.artifact import read_manifest
from tests.recompute import read_metrics, recompute
from tests.recompute_paper import TABLES, Paper, check_macros, check_numbers, check_table, prints

from .conftest import ROOT, TINY, Clone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def paper(finished: Clone) -> Paper:
    return Paper(finished.folder / "results/tiny")


def test_metrics_follow_from_the_items(paper: Paper) -> None:
    found = read_metrics(paper.folder / "metrics.csv")
    assert check_numbers(found, recompute(paper.folder)) > 150


def test_measurements_follow_from_repeats_and_runs(paper: Paper) -> None:
    found = read_metrics(paper.folder / "measurements.csv")
    published = {key: number for key, number in paper.numbers.items() if key in found}
    assert set(published) == set(found)
    for key, number in published.items():
        assert number.value == pytest.approx(found[key].value, rel=1e-9), key


@pytest.mark.parametrize("table", TABLES)
def test_tables_print_what_was_measured(paper: Paper, table: str) -> None:
    assert check_table(paper, table) > 50


@pytest.mark.parametrize("rule", ["paper_numbers", "paper_measured_numbers"])
def test_macros_print_what_was_measured(paper: Paper, rule: str) -> None:
    assert check_macros(paper, rule) > 40


def test_figures_read_the_numbers_and_nothing_else(paper: Paper) -> None:
    allowed = {"collect_metrics", "collect_measurements", "metrics.csv", "measurements.csv"}
    for path in sorted(paper.folder.glob("figure_*/*/manifest.json")):
        request = read_manifest(path).request
        read = {name.split("/")[2] for name in request["inputs"]}
        if request["rule"] == "figure_training":
            # Its curves are what the trainings noted down as they went.
            assert all(name.endswith("/manifest.json") for name in request["inputs"])
            assert read == {"substitute_block", "prune_l1", "distill_student"}
        else:
            # What a step has changed stands beside it.
            steps = {"substitute_block"} if request["rule"] == "figure_order" else set()
            assert read <= allowed | steps, request["rule"]


def test_a_report_can_be_sent_to_a_colleague(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copy(tmp_path / "clone")
    done = clone.snakemake("--report", "report.html", *TINY)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (clone.folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "Study <strong>tiny</strong>",
        "fewer than toy",
        "down is better",
        "main results",
    ):
        # Files lie in it in base64, where a text looks in one of three ways.
        ways = (base64.b64encode(b"." * n + text.encode())[4:-4].decode() for n in range(3))
        assert text in page or any(way in page for way in ways), text


def test_every_kind_of_file_is_documented(finished: Clone) -> None:
    text = (ROOT / "workflow/documentation.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"[\w*]+(?:\.[\w{},]+)?", text))
    rules = {path.name for path in (finished.folder / "results/tiny").iterdir() if path.is_dir()}
    assert {rule for rule in rules if rule not in shown} == set()


def test_a_wrong_digit_would_be_seen() -> None:
    assert prints("1,234.5", 1234.46)
    assert not prints("1,234.5", 1234.56)
    assert prints("6.08e+09", 6.0832e9)
    assert not prints("6.08e+09", 6.0891e9)
