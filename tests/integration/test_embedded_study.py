"""The embedded study with two of its seeds, twice: it means something, and is the same every time.

Minutes rather than seconds; `make test-study` and CI run it, `make test` does not.
"""

import csv
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from safetensors.torch import load_file, save_file

from tests.audit.tampering import Results
from tests.measured import is_measured
from tests.recompute import read_metrics, recompute
from tests.recompute_paper import TABLES, Paper, check_macros, check_numbers, check_table
from tests.slurm.cluster import what_is_missing
from tests.workflow.conftest import KEPT, ROOT, Clone, MakeOnce, make_clone, without_network

RESULTS = "results/embedded"
STEP = "toy/iskd/seed_17/step_01"


def run(clone: Clone, prefix: Sequence[str] = ()) -> None:
    """Run the study with two seeds, enough for means and spreads; `make demo` has all."""
    clone.edit("config/config.yaml", "seeds: [17, 18, 19]", "seeds: [17, 18]")
    done = clone.snakemake("-c", "2", prefix=prefix)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def offline(made_once: MakeOnce) -> Clone:
    """The study without any network, where a network namespace can be had.

    Where it is kept, tests/slurm compares with it what a cluster makes.
    """
    return made_once("embedded", lambda clone: run(clone, without_network() or ()))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, offline: Clone) -> Clone:
    """The study again, in a folder of another name."""
    del offline
    if os.environ.get(KEPT) and what_is_missing() is None:
        pytest.skip("tests/slurm makes the study again and compares it with this one")
    clone = make_clone(tmp_path_factory.mktemp("elsewhere") / "another clone")
    run(clone)
    return clone


def scores(clone: Clone, arm: str, task: str, metric: str) -> dict[int, float]:
    """Read one metric of one arm by step, the mean over seeds."""
    found: dict[int, list[float]] = defaultdict(list)
    with (clone.folder / RESULTS / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if (row["arm"], row["task"], row["metric"]) == (arm, task, metric):
                found[int(row["step"])].append(float(row["value"]))
    return {step: fmean(values) for step, values in found.items()}


def test_study_runs_without_a_network(offline: Clone) -> None:
    if without_network() is None:
        pytest.skip("no network namespace can be made here")
    assert (offline.folder / RESULTS / "paper/figure_tradeoff_toy.pdf").exists()


def test_what_the_documentation_quotes_is_what_comes_out(offline: Clone) -> None:
    """docs/runs has all three seeds; another kind of processor gives nearly the same numbers."""
    quoted = read_metrics(ROOT / "docs/runs/embedded.csv")
    made = read_metrics(offline.folder / RESULTS / "metrics.csv")
    shared = quoted.keys() & made.keys()
    arms = {"teacher", "iskd", "best", "l1", "kd", "teacher_tuned"}
    assert {arm for _, arm, *_ in shared} == arms
    assert len(shared) > 60
    for key in shared:
        metric, value = key[-1], quoted[key].value
        # Scores may differ by three of 50 items.
        allowed = 0.06 if metric.startswith("acc") else 0.05 * abs(value)
        assert made[key].value == pytest.approx(value, abs=allowed), key


def test_two_folders_give_the_same_metrics(offline: Clone, elsewhere: Clone) -> None:
    ours, theirs = (
        (clone.folder / RESULTS / "metrics.csv").read_bytes() for clone in (offline, elsewhere)
    )
    assert ours == theirs


def test_two_folders_give_the_same_artifacts(offline: Clone, elsewhere: Clone) -> None:
    ours, theirs = offline.files(RESULTS), elsewhere.files(RESULTS)
    assert set(ours) == set(theirs)
    assert [n for n in ours if ours[n] != theirs[n] and not is_measured(n)] == []


def test_a_verification_finds_nothing(offline: Clone) -> None:
    done = offline.iskd("verify", RESULTS, "--at", "checkout")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "place",
    [
        f"substitute_block/{STEP}",
        f"evaluate/{STEP}/cbt_context",
        "generate/toy/iskd/seed_17/step_02",
        "make_toyworld",
        "figure_pareto/toy",
    ],
)
def test_made_again_alone_it_is_the_same_to_the_bit(place: str, offline: Clone) -> None:
    done = offline.iskd("reproduce", f"{RESULTS}/{place}")
    assert done.stdout.splitlines()[:1] == [f"BITWISE {place}"], done.stdout + done.stderr


@pytest.mark.parametrize("place", [f"substitute_block/{STEP}", f"evaluate/{STEP}/cbt_context"])
def test_killed_in_its_middle_it_is_the_same_to_the_bit(place: str, offline: Clone) -> None:
    done = offline.iskd("reproduce", f"{RESULTS}/{place}", "--twin", "resume")
    lines = done.stdout.splitlines()
    assert lines[:1] == [f"BITWISE {place}"], done.stdout + done.stderr
    assert "  note: it was killed in its middle, and called again" in lines


def test_other_processors_bits_are_near(offline: Clone) -> None:
    """How a tolerance is calibrated; a processor without vector instructions has the same bits."""
    place = f"{RESULTS}/substitute_block/{STEP}"
    done = offline.iskd("reproduce", place, "--twin", "scalar", "--tolerance", "5e-3")
    assert done.stdout.startswith(("WITHIN_TOLERANCE", "BITWISE")), done.stdout + done.stderr
    assert "made without vector instructions" in done.stdout


def test_weights_in_their_last_bits_are_near_and_others_are_not(
    offline: Clone, tmp_path: Path
) -> None:
    """As another number of threads gives them; and as other data do."""
    copy = Clone(tmp_path / "clone")
    shutil.copytree(offline.folder, copy.folder, ignore=shutil.ignore_patterns(".snakemake"))
    results, place = Results(copy.folder / RESULTS), f"substitute_block/{STEP}"
    path = results / f"{place}/model.safetensors"
    tensors = load_file(path)
    for scale, verdict in ((1 + 3e-7, "WITHIN_TOLERANCE"), (1 + 1e-2, "DIFFERENT")):
        save_file({name: t * scale for name, t in tensors.items()}, path, {"format": "pt"})
        results.rewrite(place)
        done = copy.iskd("reproduce", f"{RESULTS}/{place}", "--tolerance", "1e-5")
        assert done.stdout.split()[0] == verdict, done.stdout + done.stderr


def test_teacher_understands_the_stories(offline: Clone) -> None:
    # Chance is 0.1 and 0.25.
    assert scores(offline, "teacher", "cbt_context", "acc")[0] >= 0.5
    assert scores(offline, "teacher", "hellaswag", "acc_norm")[0] >= 0.6


@pytest.mark.parametrize(("task", "metric"), [("cbt_context", "acc"), ("hellaswag", "acc_norm")])
def test_scores_fall_as_blocks_are_replaced(offline: Clone, task: str, metric: str) -> None:
    teacher = scores(offline, "teacher", task, metric)[0]
    steps = scores(offline, "iskd", task, metric)
    # More than two standard errors of a difference at this number of rows.
    assert steps[max(steps)] < teacher - 0.1
    assert sum(steps.values()) / len(steps) < teacher


def test_loss_rises_as_blocks_are_replaced(offline: Clone) -> None:
    teacher = scores(offline, "teacher", "heldout", "loss")[0]
    steps = scores(offline, "iskd", "heldout", "loss")
    assert steps[max(steps)] > teacher
    assert steps[max(steps)] > steps[1]


def test_finished_study_has_nothing_to_do(offline: Clone) -> None:
    done = offline.snakemake("-c", "2")
    assert "Nothing to be done" in done.stdout + done.stderr


def test_paper_folder_is_complete(offline: Clone) -> None:
    names = {f.name for f in Path(offline.folder / RESULTS / "paper").iterdir()}
    assert {f"figure_tradeoff_toy.{s}" for s in ("pdf", "svg", "png", "csv")} <= names
    assert {f"table_main.{s}" for s in ("tex", "csv", "md")} <= names


def test_every_number_can_be_recomputed(offline: Clone) -> None:
    folder = offline.folder / RESULTS
    assert check_numbers(read_metrics(folder / "metrics.csv"), recompute(folder)) > 300
    paper = Paper(folder)
    for table in TABLES:
        assert check_table(paper, table) > 50
    for rule in ("paper_numbers", "paper_measured_numbers"):
        assert check_macros(paper, rule) > 50
