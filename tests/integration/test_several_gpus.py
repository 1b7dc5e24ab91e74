"""A study whose trainings take two GPUs each, on processors: two processes for a job."""

import json
import re
from pathlib import Path

import pytest

from tests.workflow.conftest import Clone, make_clone

pytestmark = pytest.mark.slow

FILE = "tests/config/arms.yaml"
# The first steps of two chains: one that only trains, and one that does all else before it.
STEPS = [
    f"results/arms/substitute_block/toy/{arm}/seed_3/step_01" for arm in ("paper", "distilled")
]
TARGETS = [f"{step}/manifest.json" for step in STEPS]


def with_gpus(clone: Clone, number: int) -> Clone:
    clone.edit(FILE, "    order: [1, 2]", f"    gpus: {number}\n    order: [1, 2]")
    return clone


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return make_clone(tmp_path / "clone")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = with_gpus(make_clone(tmp_path_factory.mktemp("shared") / "clone"), 2)
    done = clone.snakemake(*TARGETS, "--configfile", FILE, "-c", "2", "--resources", "gpu=2")
    assert done.returncode == 0, done.stderr[-4000:]
    return clone


def read(file: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_every_training_runs_in_two_processes(shared: Clone) -> None:
    for place in ("results/arms/pretrain_teacher/toy", *STEPS):
        folder = shared.folder / place
        run = read(folder / "run.json")
        assert (run["processes"], run["parallel"], run["threads"]) == (2, "ddp", 1)
        assert "processes" not in (folder / "manifest.json").read_text()
    corpus = read(shared.folder / "results/arms/prepare_corpus/toy/run.json")
    assert (corpus["processes"], corpus["parallel"]) == (1, None)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_learns_what_it_learns_alone(step: str, shared: Clone, all_arms: Clone) -> None:
    """Order search, warm start and a teacher in the loss included: but for rounding."""
    ours, theirs = (
        [json.loads(line) for line in (clone.folder / step / "history.jsonl").open()]
        for clone in (shared, all_arms)
    )
    # Some objectives tell the next-token loss beside their own.
    losses, wanted = (
        [row.pop(name) for row in rows for name in ("loss", "next_token") if name in row]
        for rows in (ours, theirs)
    )
    assert ours == theirs  # phases, steps, tokens, FLOPs, rates
    assert losses == pytest.approx(wanted, rel=1e-4)
    chosen, expected = (read(c.folder / step / "substitution.json") for c in (shared, all_arms))
    assert chosen["block"] == expected["block"]


def test_another_number_of_gpus_remakes_nothing(shared: Clone) -> None:
    shared.edit(FILE, "gpus: 2", "gpus: 4")
    try:
        assert shared.planned(*TARGETS, "--configfile", FILE, "-c", "2") == {}
    finally:
        shared.edit(FILE, "gpus: 4", "gpus: 2")


def test_a_scheduler_gets_gpus_and_processes(clone: Clone) -> None:
    # The one kind of training that the study leaves out, to save its tests the time.
    clone.edit(FILE, "arms:", "arms:\n  teacher_tuned: {method: teacher_tuned, reference: paper}")
    done = with_gpus(clone, 2).snakemake("-n", "--verbose", "--configfile", FILE, "-c", "2")
    printed = done.stdout + done.stderr
    planned = re.findall(r"^rule (\w+):.*?^    resources: ([^\n]*)", printed, re.M | re.S)
    trains = {rule for rule, resources in planned if "gpu=2, processes=2" in resources}
    assert trains == {
        *("pretrain_teacher", "substitute_block", "substitute_at_once", "prune_l1"),
        *("distill_student", "drop_layers", "tune_teacher"),
    }


def test_a_batch_that_cannot_be_shared_is_one_line(clone: Clone) -> None:
    done = with_gpus(clone, 3).snakemake("-n", "--configfile", FILE, "-c", "2")
    assert done.returncode == 1
    line = "teachers.toy.training.batch_size: 16 sequences cannot be shared evenly by the 3 GPUs"
    assert done.stderr.strip().splitlines()[-1].startswith(f"{FILE}: {line}")
