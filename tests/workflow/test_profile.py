"""The SLURM profile, as far as it can be seen without a SLURM (tests/slurm has a real one)."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from .conftest import ROOT, Clone

pytestmark = pytest.mark.slow

PROFILES = ROOT / "workflow/profiles"


def resources(printed: str, rule: str) -> dict[str, str]:
    """Read the resources that a dry run prints for the first job of a rule."""
    job = re.search(rf"^(?:local)?rule {rule}:\n((?:    .*\n)+)", printed, re.MULTILINE)
    assert job, printed[-3000:]
    line = re.search(r"^    resources: (.*)$", job[1], re.MULTILINE)
    assert line, job[0]
    return dict(pair.split("=", 1) for pair in line[1].split(", "))


# Where only the profile matters, a study of fewer jobs than the paper's is planned.
SMALL = ("--configfile", "config/config.yaml")


def dry_run(clone: Clone, *arguments: str, **environment: str) -> str:
    done = clone.snakemake("--profile", "slurm", "-n", "--verbose", *arguments, **environment)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    return printed


def test_the_literal_command_plans_the_paper_study_in_a_fresh_clone(clone: Clone) -> None:
    printed = dry_run(clone)
    assert "results/paper/substitute_block/gpt2/iskd/seed_17/step_12/manifest.json" in printed
    assert "results/paper/substitute_block/phi-1/iskd/seed_17/step_24/manifest.json" in printed
    counts = dict(re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE))
    # 12 blocks of GPT-2 and 24 of Phi-1, in three arms and three seeds; two teachers with five
    # baselines, themselves, and one reference row; on the corpus's text and on one more.
    assert counts["substitute_block"] == str(3 * 3 * 36)
    assert counts["evaluate_heldout"] == str(2 * (3 * (3 * 36 + 2 * 5) + 2 + 1))
    # Of these, one of each arm and teacher writes.
    assert counts["generate"] == str(2 * (3 + 5 + 1) + 1)
    assert counts["download_model"] == "2"
    assert counts["download_reference"] == "1"
    assert not (clone.folder / "results").exists()


def test_prefetch_through_the_profile_is_the_downloads_alone(clone: Clone) -> None:
    printed = dry_run(clone, "prefetch")
    assert set(re.findall(r"^(?:local)?rule (\w+):", printed, re.MULTILINE)) == {
        *("download_model", "download_corpus", "download_task", "download_reference"),
        *("download_text", "prefetch"),
    }


def test_every_rule_that_needs_a_network_runs_where_snakemake_runs(clone: Clone) -> None:
    """A dry run does not show it, so it is read off the rules."""
    text = (clone.folder / "workflow/rules/hub.smk").read_text(encoding="utf-8")
    rules = re.split(r"^rule ", text, flags=re.MULTILINE)[1:]
    assert len(rules) == 6
    assert [rule.split(":")[0] for rule in rules if "localrule: True" not in rule] == []


def test_account_and_partition_survive_the_merge_with_the_default_profile(clone: Clone) -> None:
    printed = dry_run(clone, *SMALL, SLURM_ACCOUNT="physics", SLURM_PARTITION="a100")
    found = resources(printed, "substitute_block")
    assert found["slurm_account"] == "physics"
    assert found["slurm_partition"] == "a100"
    assert found["gpu"] == "1"
    assert found["slurm_extra"] == "--signal=TERM@120"
    assert found["attempt"] == "1"
    # A rule's own wishes go before the profile's.
    assert found["runtime"] == "240"
    assert resources(printed, "train_tokenizer")["runtime"] == "60"


def test_without_them_the_site_decides(clone: Clone) -> None:
    printed = dry_run(clone, *SMALL, SLURM_ACCOUNT="", SLURM_PARTITION="")
    found = resources(printed, "substitute_block")
    assert "slurm_account" not in found
    assert "slurm_partition" not in found
    assert found["mem_mb"] == "16000"


def test_one_resource_of_one_rule_can_be_changed(clone: Clone) -> None:
    printed = dry_run(
        clone, *SMALL, "--set-resources", "substitute_block:runtime=90", SLURM_ACCOUNT="physics"
    )
    found = resources(printed, "substitute_block")
    assert found["runtime"] == "90"
    assert found["slurm_account"] == "physics"


def test_another_study_takes_the_papers_place(clone: Clone) -> None:
    printed = dry_run(clone, "--configfile", "tests/config/tiny.yaml")
    assert "results/tiny/" in printed
    assert "results/paper/" not in printed


def test_the_profiles_share_no_key() -> None:
    """Of a key in both, the default profile's value would win as a whole."""
    slurm, default = (
        set(yaml.safe_load((PROFILES / name / "config.yaml").read_text(encoding="utf-8")))
        for name in ("slurm", "default")
    )
    # Each file's own templates: they are gone before the two are put together.
    templates = {"__use_yte__", "__definitions__"}
    assert slurm & default <= templates


def test_the_profile_is_a_link_in_the_repository() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--stage", "slurm"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    if not listed:
        pytest.skip("no git repository, or not added yet")
    assert listed.startswith("120000 ")
    assert (ROOT / "slurm").readlink() == Path("workflow/profiles/slurm")
