"""Every number of a finished study again, by code of its own."""

import pytest

from tests.recompute import read_metrics, recompute
from tests.recompute_paper import TABLES, Paper, check_macros, check_numbers, check_table, prints

from .conftest import Clone

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def paper(finished: Clone) -> Paper:
    return Paper(finished.folder / "results/tiny")


def test_metrics_follow_from_the_items(paper: Paper) -> None:
    found = read_metrics(paper.folder / "metrics.csv")
    assert check_numbers(found, recompute(paper.folder)) > 250


def test_measurements_follow_from_repeats_and_runs(paper: Paper) -> None:
    found = read_metrics(paper.folder / "measurements.csv")
    told = {key: number for key, number in paper.numbers.items() if key in found}
    assert set(told) == set(found)
    for key, number in told.items():
        assert number.value == pytest.approx(found[key].value, rel=1e-9), key


@pytest.mark.parametrize("table", TABLES)
def test_tables_print_what_was_measured(paper: Paper, table: str) -> None:
    assert check_table(paper, table) > 50


@pytest.mark.parametrize("rule", ["paper_numbers", "paper_measured_numbers"])
def test_macros_print_what_was_measured(paper: Paper, rule: str) -> None:
    assert check_macros(paper, rule) > 50


def test_a_wrong_digit_would_be_seen() -> None:
    assert prints("1,234.5", 1234.46)
    assert not prints("1,234.5", 1234.56)
    assert prints("6.08e+09", 6.0832e9)
    assert not prints("6.08e+09", 6.0891e9)
