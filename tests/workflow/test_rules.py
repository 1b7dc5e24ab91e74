"""Every rule is run by a test, stands in the documentation, and in the picture where it belongs."""

import re
import subprocess
import sys

import pytest

from iskd.audit.planned import Planning

from .conftest import ROOT
from .test_plans import RULES, SCRIPTED

RUN_BY = {
    "tests/config/tiny.yaml": "tests/workflow/test_tiny_study.py",
    "tests/config/arms.yaml": "tests/integration/test_all_arms.py",
    "config/config.yaml": "tests/integration/test_embedded_study.py",
}
"""The studies that a test runs from end to end."""

PREFETCH = "tests/workflow/test_offline.py::test_prefetch_fetches_the_pinned_commits"
ALONE = {
    **dict.fromkeys([f"download_{what}" for what in ("model", "reference", "corpus")], PREFETCH),
    **dict.fromkeys(["download_task", "prefetch"], PREFETCH),
    "download_text": "tests/workflow/test_offline.py::test_after_prefetch_the_study",
    "split_corpus": "tests/workflow/test_offline.py::test_after_prefetch_the_study",
    "import_model": "tests/integration/test_compress.py::test_other_weights_in_the_folder",
    "audit": "tests/audit/test_faults.py::test_snakemake_audit_fails",
}
"""The rules that none of these studies has, each with the beginning of a test that runs it."""


@pytest.fixture(scope="module")
def planned() -> dict[str, set[str]]:
    """The rules of each study that a test runs."""
    started = {study: Planning(ROOT / study) for study in RUN_BY}
    return {
        study: {job.request["rule"] for job in planning.finish().values()}
        for study, planning in started.items()
    }


def test_every_rule_is_run_by_a_test(planned: dict[str, set[str]]) -> None:
    by_studies = set().union(*planned.values())
    without = set(RULES) - by_studies - set(ALONE)
    assert without == set(), f"a test has to run {without}, or ALONE has to name the one that does"
    assert set(ALONE) <= set(RULES) - by_studies, "a study runs it: take it out of ALONE"


def test_the_tests_that_are_listed_to_run_a_rule_are_there() -> None:
    for study, file in RUN_BY.items():
        name = study.rpartition("/")[2]
        text = (ROOT / file).read_text(encoding="utf-8")
        text += (ROOT / file).with_name("conftest.py").read_text() if "tiny" in name else ""
        assert name in text or study == "config/config.yaml"
    for rule, test in ALONE.items():
        file, name = test.split("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {name}" in text, test
        assert rule in text, f"{file} says nothing of {rule}"


def test_every_rule_is_documented() -> None:
    page = (ROOT / "workflow/documentation.md").read_text(encoding="utf-8")
    table = page.split("## Rules")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert sorted(named) == sorted(SCRIPTED)
    files = (ROOT / "workflow/rules").glob("*.smk")
    whole = "\n".join(file.read_text(encoding="utf-8") for file in files)
    for name, text in RULES.items():
        # A rule that is made of another one has no docstring of its own.
        above = re.search(rf"^# [A-Z].*\.\nuse rule \w+ as {name} with:", whole, re.MULTILINE)
        assert above or re.match(r'\s+"""[A-Z].*\.', text), f"{name} does not say what it does"


def test_the_rule_graph_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/rulegraph.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
