"""The whole workflow on the smallest study, as a user runs it: twice, in two folders.

The first run has no network at all, the second one is killed on its way. All tests here share
them. What reruns when is tested in test_reruns.py.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from iskd.audit.verify import verify
from iskd.provenance.artifact import read_manifest

from .conftest import TINY, Clone, check_same_results, without_network

pytestmark = pytest.mark.slow

PAPER = Path("results/tiny/paper")


def test_run_without_network_ends_in_figures_and_tables(finished: Clone) -> None:
    if without_network() is None:
        pytest.skip("no network namespace can be made here, so the first run had a network")
    names = {f.name for f in (finished.folder / PAPER).iterdir()}
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


# `make test-chaos` is about many more of them, in a study whose trainings take longer.
KILLS = 2


def run_until_killed(clone: Clone, seconds: float) -> bool:
    """Start the study and kill it with all its jobs after a while; say whether it had ended."""
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


@pytest.fixture(scope="session")
def second(clone_at: Callable[[str], Clone], finished: Clone) -> Clone:
    """The same study in a folder of another name, killed again and again on the way."""
    clone, draw = clone_at("a second place, with a longer name"), random.Random(17)
    kills, resumed = 0, 0
    while kills < KILLS:
        ended = run_until_killed(clone, draw.uniform(3.0, 12.0))
        kills += not ended
        if ended:
            # Faster than the schedule: once more from the start.
            check_same_results(clone, finished, "tiny")
            resumed += count_resumed(clone)
            shutil.rmtree(clone.folder / "results")
    done = clone.snakemake(*TINY)
    assert "Look first at\n  results/tiny/paper/figure_tradeoff_toy.png\n" in done.stderr
    assert done.returncode == 0, done.stderr[-4000:]
    resumed += count_resumed(clone)
    print(f"{kills} kills, {resumed} resumed trainings")
    return clone


def test_another_folder_and_kills_give_the_same_bytes(finished: Clone, second: Clone) -> None:
    """Every file is the undisturbed study's, whatever moment the kills hit: all but logs."""
    names = [set(clone.files("results/tiny")) for clone in (finished, second)]
    # Snakemake writes a job's benchmark after its artifact is there: a kill between leaves none.
    assert {name for name in names[0] ^ names[1] if not name.startswith("benchmarks/")} == set()
    check_same_results(finished, second, "tiny")


def test_a_study_that_was_killed_and_resumed_verifies(second: Clone) -> None:
    assert verify(second.folder / "results/tiny", derive=False).findings == []


def count_resumed(clone: Clone) -> int:
    runs = (clone.folder / "results/tiny").rglob("run.json")
    return sum(len(json.loads(file.read_text())["resumed_after_steps"]) for file in runs)


def test_checkpoint_loads_in_a_fresh_process_after_import_iskd(finished: Clone) -> None:
    folder = finished.folder / "results/tiny/substitute_block/toy/iskd/seed_3/step_02"
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
        cwd=finished.folder / "scripts",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "CompactGPT2LMHeadModel"
    weights = [f.name for f in folder.iterdir() if f.suffix in {".bin", ".pt", ".pth", ".pickle"}]
    assert weights == []


def test_baseline_matches_the_reference_parameters(finished: Clone) -> None:
    def parameters(place: str) -> int:
        manifest = finished.folder / "results/tiny" / place / "manifest.json"
        return int(read_manifest(manifest).summary["parameters"])

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
