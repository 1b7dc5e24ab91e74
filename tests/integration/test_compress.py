"""Somebody makes a model of their own smaller, word for word as docs/compress.md has it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.conftest import ROOT, Clone, make_clone

ARROW = re.compile(r"# <- (.+)")
_BLOCK = re.compile(r"<!-- test: (.+?) -->\n```\w+\n(.*?)```", re.DOTALL)


def blocks() -> dict[str, str]:
    """Give the page's blocks by what its comments call them."""
    return dict(_BLOCK.findall((ROOT / "docs/compress.md").read_text(encoding="utf-8")))


def edited(config: str, lines: list[str]) -> str:
    """Put the page's lines into the config: each in the place of the one with the same key."""
    kept = []
    wanted = {line.split(":")[0].strip(): line for line in lines}
    wanted["model"] = wanted.pop("folder")
    for line in config.splitlines():
        key = line.split(":")[0].strip()
        if key == "revision":
            continue
        kept.append(wanted.pop(key) if key in wanted and line.split(":")[1].strip() else line)
    assert not wanted, wanted
    return "\n".join(kept) + "\n"


def run(clone: Clone, program: str, name: str) -> str:
    """Run a program of the page in the clone's folder and give what it printed."""
    (clone.folder / name).write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, name], cwd=clone.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_five_lines_are_to_be_edited() -> None:
    arrows = ARROW.findall((ROOT / "config/compress.yaml").read_text(encoding="utf-8"))
    assert len(arrows) == 5
    table = (ROOT / "docs/compress.md").read_text(encoding="utf-8")
    for arrow in arrows:
        assert f"| {re.split('[;:]| such ', arrow)[0]} |" in table


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which all of the page was done."""
    clone = make_clone(tmp_path_factory.mktemp("compress") / "clone")
    page = blocks()
    assert "loss at the end: " in run(clone, page["make_model.py"], "make_model.py")
    config = (clone.folder / "config/compress.yaml").read_text(encoding="utf-8")
    mine = edited(config, page["config/mine.yaml"].splitlines())
    (clone.folder / "config/mine.yaml").write_text(mine, encoding="utf-8")
    snakemake, *arguments = page["call"].split()
    assert snakemake == "snakemake"
    done = clone.snakemake(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return clone


def test_the_smaller_model_is_used_like_any_other(clone: Clone) -> None:
    assert run(clone, blocks()["use.py"], "use.py").startswith("Once upon a time")


def test_table_and_card_say_what_became_of_it(clone: Clone) -> None:
    results = clone.folder / "results/compress"
    table = (results / "paper/table_main.md").read_text(encoding="utf-8")
    smaller = next(line for line in table.splitlines() if line.startswith("| Smaller"))
    reduction = float(smaller.split("|")[4])
    assert 30 <= reduction < 31
    step = results / "substitute_block/model/smaller/seed_17/step_01"
    assert "What was measured" in (step / "README.md").read_text(encoding="utf-8")
    assert json.loads((step / "config.json").read_text())["model_type"] == "iskd_llama"
    # What the page shows came from a run such as this one.
    page = (ROOT / "docs/compress.md").read_text(encoding="utf-8")
    assert smaller.split("|")[3] in next(x for x in page.splitlines() if x.startswith("| Smaller"))


def test_it_is_audited_like_any_other(clone: Clone) -> None:
    done = clone.iskd("verify", "results/compress")
    assert done.returncode == 0, done.stdout + done.stderr
    done = clone.iskd("verify", "results/compress", "--at", "checkout")
    assert done.returncode == 0, done.stdout + done.stderr


def test_other_weights_in_the_folder_are_another_teacher(clone: Clone) -> None:
    call = ("-n", "-q", "rules", "--configfile", "config/mine.yaml")
    done = clone.snakemake(*call)
    assert "Nothing to be done" in done.stdout + done.stderr
    weights: Path = clone.folder / "data/my-model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    counts = clone.planned("--configfile", "config/mine.yaml")
    assert counts["import_model"] == 1
    assert counts["substitute_block"] == 1
