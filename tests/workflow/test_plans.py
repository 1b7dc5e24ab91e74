"""The studies that are shipped plan, and the house is laid out as it promises."""

import os
import re
import subprocess
import sys

import pytest

from iskd.audit.planned import Planning

from .conftest import ROOT, Clone

RULE = re.compile(r"^(?:rule|use rule \w+ as) (\w+)(?: with)?:", re.MULTILINE)


def rules() -> dict[str, str]:
    """Give every rule's text by its name."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        parts = RULE.split(file.read_text(encoding="utf-8"))
        found |= dict(zip(parts[1::2], parts[2::2], strict=True))
    return found


RULES = rules()
SCRIPTED = [name for name, text in RULES.items() if "script:" in text or "script=" in text]


def test_embedded_study_plans(clone: Clone) -> None:
    done = clone.snakemake("-n")
    assert done.returncode == 0, done.stderr
    assert "pretrain_teacher" in done.stdout + done.stderr


def test_the_auditors_plan_is_snakemakes(clone: Clone) -> None:
    done = clone.snakemake("-n", "--verbose", "--configfile", "tests/config/tiny.yaml")
    outputs = re.findall(r"^    output: (.*)$", done.stdout + done.stderr, re.MULTILINE)
    written = {name for line in outputs for name in line.split(", ")}
    manifests = {name for name in written if name.endswith("/manifest.json")}
    plan = Planning(ROOT / "tests/config/tiny.yaml").finish()
    assert {f"results/tiny/{place}/manifest.json" for place in plan} == manifests
    copies = {f"results/tiny/{name}" for planned in plan.values() for name in planned.copies}
    places = {name.rpartition("/")[0] for name in manifests}
    assert copies == {name for name in written if name.rpartition("/")[0] not in places} | {
        name for name in written if name.endswith("README.md") and "/model_card/" not in name
    }


def test_a_study_is_planned_without_its_data() -> None:
    plan = Planning(ROOT / "config/real.yaml").finish()
    assert [path.name for path in plan["split_corpus"].read] == ["tinystories.jsonl"]


def test_prefetch_is_all_that_needs_a_network(clone: Clone) -> None:
    done = clone.snakemake("prefetch", "-n", "-q", "rules", "--configfile", "config/paper.yaml")
    assert done.returncode == 0, done.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    assert set(counts) == {
        "download_model",
        "download_reference",
        "download_corpus",
        "download_task",
        "download_text",
        "prefetch",
        "total",
    }


@pytest.mark.skipif(
    "ISKD_REAL_DATA" not in os.environ, reason="ISKD_REAL_DATA names no folder with real text"
)
def test_real_study_plans(clone: Clone) -> None:
    done = clone.snakemake("-n", "--configfile", "config/real.yaml")
    assert done.returncode == 0, done.stderr
    assert "split_corpus" in done.stdout + done.stderr


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "tools/config_docs.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("rule", SCRIPTED)
def test_rule_script_log_and_folder_have_one_name(rule: str) -> None:
    text = RULES[rule]
    script = ROOT / "scripts" / f"{rule}.py"
    # What several rules share names its script by a parameter.
    assert f"../../scripts/{rule}.py" in text or f'script="{rule}"' in text
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 50
    assert re.search(rf'"<logs>/{rule}(/|\.log)', text)
    # Readers look for `paper/`, whatever the rule that fills it is called.
    folder = "paper" if rule == "collect_paper" else rule
    assert f"<results>/{folder}/" in text
    assert f'code_fingerprint("{rule}")' in text


def test_no_script_lies_without_a_rule() -> None:
    assert {file.stem for file in (ROOT / "scripts").glob("*.py")} == set(SCRIPTED)


def test_library_does_not_import_snakemake() -> None:
    for file in (ROOT / "scripts/iskd").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) snakemake", text, re.MULTILINE), file
