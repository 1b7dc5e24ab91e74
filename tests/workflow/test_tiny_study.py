"""The whole workflow on the smallest study, as a user runs it: twice, in two folders.

The first run has no network at all. All tests here share the two runs.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Clone, without_network

pytestmark = pytest.mark.slow

TINY = ("--configfile", "tests/config/tiny.yaml", "-c", "2")
PAPER = Path("results/tiny/paper")


@pytest.fixture(scope="session")
def first(clone_at: Callable[[str], Clone]) -> Clone:
    """A finished study, made without a network where that can be had."""
    clone = clone_at("first")
    done = clone.snakemake(*TINY, prefix=without_network() or ())
    assert done.returncode == 0, done.stderr[-4000:]
    return clone


@pytest.fixture(scope="session")
def second(clone_at: Callable[[str], Clone], first: Clone) -> Clone:
    """The same study again, in a folder of another name."""
    del first  # not side by side: two runs at once would be four jobs on two cores
    clone = clone_at("a second place, with a longer name")
    done = clone.snakemake(*TINY)
    assert done.returncode == 0, done.stderr[-4000:]
    return clone


def planned(clone: Clone, *arguments: str) -> dict[str, int]:
    """Count the jobs that a call would run, by rule."""
    done = clone.snakemake("-n", "-q", "rules", *TINY, *arguments)
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    counts = {k: int(v) for k, v in re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE)}
    counts.pop("total", None)
    counts.pop("all", None)
    return counts


def test_run_without_network_ends_in_figures_and_tables(first: Clone) -> None:
    if without_network() is None:
        pytest.skip("no network namespace can be made here, so the first run had a network")
    names = {f.name for f in (first.folder / PAPER).iterdir()}
    assert names >= {
        "metrics.csv",
        "table_main.tex",
        "table_main.csv",
        "table_main.md",
        "figure_tradeoff_toy.pdf",
        "figure_tradeoff_toy.svg",
        "figure_tradeoff_toy.png",
        "figure_tradeoff_toy.csv",
    }


def check_same_results(one: Clone, other: Clone) -> None:
    """Compare every file but those that say how and when."""
    told_apart = re.compile(r"(^logs/|^benchmarks/|/run\.json$)")
    ours, theirs = (
        {n: data for n, data in c.files("results/tiny").items() if not told_apart.search(n)}
        for c in (one, other)
    )
    assert set(ours) == set(theirs)
    assert [n for n in ours if ours[n] != theirs[n]] == []


def test_two_folders_give_the_same_bytes(first: Clone, second: Clone) -> None:
    assert set(first.files("results/tiny")) == set(second.files("results/tiny"))
    check_same_results(first, second)


# `make test-chaos` asks for more of them.
KILLS = int(os.environ.get("ISKD_KILLS", "2"))


def run_until_killed(clone: Clone, seconds: float) -> bool:
    """Start the study and kill it with all its jobs after a while; say whether it had ended."""
    clone.snakemake("--unlock", *TINY)
    with subprocess.Popen(
        [sys.executable, "-m", "snakemake", *TINY],
        cwd=clone.folder,
        env={**os.environ, "ISKD_STATE_SECONDS": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as running:
        try:
            assert running.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            return False
    return True


def test_a_study_that_is_killed_again_and_again_ends_with_the_same_bytes(
    first: Clone, clone_at: Callable[[str], Clone]
) -> None:
    """Every file is the undisturbed study's, whatever moment the kills hit: all but logs."""
    clone, draw = clone_at("killed"), random.Random(17)
    kills, resumed = 0, 0
    while kills < KILLS:
        ended = run_until_killed(clone, draw.uniform(3.0, 12.0))
        kills += not ended
        if ended:
            # Faster than the schedule: once more from the start.
            check_same_results(clone, first)
            resumed += count_resumed(clone)
            shutil.rmtree(clone.folder / "results")
    clone.snakemake("--unlock", *TINY)
    done = clone.snakemake(*TINY)
    assert done.returncode == 0, done.stderr[-4000:]
    check_same_results(clone, first)
    resumed += count_resumed(clone)
    print(f"{kills} kills, {resumed} resumed trainings")


def count_resumed(clone: Clone) -> int:
    runs = (clone.folder / "results/tiny").rglob("run.json")
    return sum(len(json.loads(file.read_text())["resumed_after_steps"]) for file in runs)


def test_finished_study_has_nothing_to_do(first: Clone) -> None:
    done = first.snakemake(*TINY)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_touched_files_rerun_nothing(first: Clone) -> None:
    for file in [*first.folder.glob("scripts/**/*.py"), *first.folder.glob("workflow/**/*.smk")]:
        file.touch()
    assert planned(first) == {}


def test_comment_and_docstring_rerun_nothing(second: Clone) -> None:
    file = second.folder / "scripts/iskd/training/loop.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace('"""One fine-tuning run', '"""Just one fine-tuning run') + "\n# A remark.\n",
        encoding="utf-8",
    )
    try:
        assert planned(second) == {}
    finally:
        file.write_text(text, encoding="utf-8")


def test_changed_figure_code_reruns_the_figure_only(second: Clone) -> None:
    file = second.folder / "scripts/iskd/paper/figures.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text + "\nADDED = 1\n", encoding="utf-8")
    try:
        assert planned(second) == {"figure_tradeoff": 1, "collect_paper": 1}
    finally:
        file.write_text(text, encoding="utf-8")


def test_changed_arm_reruns_that_arm_only(second: Clone) -> None:
    file = second.folder / "tests/config/tiny.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace("{method: kd}", "{method: kd, objective: {kl: 0.7}}"), encoding="utf-8"
    )
    try:
        counts = planned(second)
    finally:
        file.write_text(text, encoding="utf-8")
    assert counts.pop("distill_student") == 1
    assert counts.pop("evaluate") == 3
    assert counts.pop("evaluate_heldout") == 1
    assert set(counts) == {
        "collect_metrics",
        "figure_tradeoff",
        "table_main",
        "table_ablation",
        "collect_paper",
    }


def test_added_task_evaluates_that_task_only(second: Clone) -> None:
    file = second.folder / "tests/config/tiny.yaml"
    text = file.read_text(encoding="utf-8")
    added = "\n  again: {source: toyworld, kind: hellaswag, rows: 3}\n"
    file.write_text(text.rstrip() + added, encoding="utf-8")
    try:
        counts = planned(second)
    finally:
        file.write_text(text, encoding="utf-8")
    # The teacher, two steps and three baselines.
    assert counts["evaluate"] == 6
    assert counts["prepare_task"] == 1
    assert "substitute_block" not in counts
    assert "evaluate_heldout" not in counts


def test_checkpoint_loads_in_a_fresh_process_after_import_iskd(first: Clone) -> None:
    folder = first.folder / "results/tiny/substitute_block/toy/iskd/seed_3/step_02"
    program = (
        "import sys, iskd, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('Once', return_tensors='pt')\n"
        "out = model.generate(**ids, max_new_tokens=4, do_sample=False)\n"
        "print(type(model).__name__, out.shape[1] - ids['input_ids'].shape[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=first.folder / "scripts",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "CompactGPT2LMHeadModel"
    weights = [f.name for f in folder.iterdir() if f.suffix in {".bin", ".pt", ".pth", ".pickle"}]
    assert weights == []


def test_baseline_matches_the_reference_parameters(first: Clone) -> None:
    def parameters(place: str) -> int:
        manifest = first.folder / "results/tiny" / place / "manifest.json"
        return int(json.loads(manifest.read_text("utf-8"))["produced"]["summary"]["parameters"])

    target = parameters("substitute_block/toy/iskd/seed_3/step_02")
    pruned = parameters("prune_l1/toy/l1/seed_3/step_02")
    # A neuron of this teacher has 2 * 32 + 1 weights: nothing smaller can be removed.
    assert 0 <= target - pruned <= 65


def test_failed_job_says_why_and_publishes_nothing(second: Clone) -> None:
    chain = second.folder / "results/tiny/substitute_block/toy/iskd/seed_3/step_02"
    kept = second.folder / "kept_step"
    tokens = second.folder / "results/tiny/prepare_corpus/toy/train.safetensors"
    good = tokens.read_bytes()
    shutil.move(chain, kept)
    tokens.write_bytes(good[:100])
    try:
        done = second.snakemake(*TINY, str(chain.relative_to(second.folder) / "manifest.json"))
        printed = done.stdout + done.stderr
        assert done.returncode == 1
        assert "substitute_block failed: SafetensorError" in printed
        assert "logs/substitute_block/toy/iskd/seed_3/step_02.log" in printed
        assert not chain.exists() or not any(chain.iterdir())
        assert list(chain.parent.glob(".*")) == []
    finally:
        tokens.write_bytes(good)
        shutil.rmtree(chain, ignore_errors=True)
        shutil.move(kept, chain)
