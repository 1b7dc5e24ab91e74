"""Several processes that train one model: what one would have made, whatever happens to them.

There is no GPU here; processors that talk over gloo do the same work.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from iskd.errors import UserError
from iskd.provenance.ledger import STATE_SECONDS
from iskd.provenance.statement import parse_statement
from iskd.runtime.distributed import World, share
from iskd.runtime.launch import _overall_report, run_processes
from iskd.runtime.locks import read_holder
from iskd.runtime.messages import Assignment, Report
from iskd.runtime.signals import Interrupted, StopRequest
from tests.integration import together

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("together_script.py")

slow = pytest.mark.slow


@given(st.integers(0, 100), st.integers(1, 12))
def test_processes_share_a_batch_evenly_and_leave_nothing(sequences: int, size: int) -> None:
    parts = [range(sequences)[share(sequences, World(rank, size, "ddp"))] for rank in range(size)]
    assert [index for part in parts for index in part] == list(range(sequences))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.fixture(autouse=True)
def _a_state_after_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_SECONDS, "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(
    folder: Path, processes: int, parallel: str = "ddp", script: Path = SCRIPT, **params: Any
) -> Report:
    """Run the script in its processes, as a job does, in a folder that keeps its states."""
    for name in ("out", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return run_processes(
        Assignment(
            script=str(script),
            rule="train",
            params=params,
            wildcards={},
            inputs={},
            threads=1,
            log=str(folder / "log"),
            request={"rule": "train"},
            out=str(folder / "out"),
            work=str(folder / "work"),
            started=time.time(),
            processes=processes,
            parallel=parallel,
        )
    )


def result(folder: Path, case: str = "with_dropout") -> together.Result:
    history = json.loads((folder / "out" / f"{case}.json").read_text())
    return load_file(folder / "out" / f"{case}.safetensors"), history


def check_same(folder: Path, wanted: Path) -> None:
    names = ("with_dropout.safetensors", "with_dropout.json")
    for name in names:
        assert (folder / "out" / name).read_bytes() == (wanted / "out" / name).read_bytes(), name


MakeFolder = Callable[[int, str], Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Give a function that trains once, with dropout, and gives the folder."""
    made: dict[tuple[int, str], Path] = {}

    def make(processes: int, parallel: str) -> Path:
        if (processes, parallel) not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            report = run(folder, processes, parallel)
            assert report.resumed == []
            made[processes, parallel] = folder
        return made[processes, parallel]

    return make


@slow
@pytest.mark.parametrize(("processes", "parallel"), [(2, "ddp"), (3, "ddp"), (2, "fsdp")])
def test_several_learn_what_one_would(processes: int, parallel: str, tmp_path: Path) -> None:
    refused = () if parallel == "ddp" else together.NOT_SPLIT
    cases = [case for case in together.CASES if case not in refused]
    run(tmp_path, processes, parallel, cases=cases)
    for case in cases:
        weights, history = result(tmp_path, case)
        wanted_weights, wanted_history = together.CASES[case]()
        rough = case == "half_precision"
        # Some objectives tell the next-token loss beside their own.
        losses, wanted_losses = (
            [row.pop(name) for row in rows for name in ("loss", "next_token") if name in row]
            for rows in (history, wanted_history)
        )
        assert history == wanted_history, case  # steps, tokens, FLOPs, learning rates
        assert len(history) == together.STEPS
        assert losses == pytest.approx(wanted_losses, rel=5e-3 if rough else 2e-6), case
        assert set(weights) == set(wanted_weights)
        gaps = torch.cat([(wanted_weights[n] - w).abs().flatten() for n, w in weights.items()])
        # Weights move by some 1e-4 or 1e-3. Where the gradient is rounding alone, as that of the
        # keys' biases, Adam makes steps of it.
        assert gaps.mean() < (1e-4 if rough else 1e-6), case


@slow
def test_the_same_work_gives_the_same_bits(undisturbed: MakeFolder, tmp_path: Path) -> None:
    report = run(tmp_path, 2, "ddp")
    check_same(tmp_path, undisturbed(2, "ddp"))
    assert report.summary["with_dropout"] == result(tmp_path)[1][-1]["loss"]


@slow
@pytest.mark.parametrize(("processes", "parallel"), [(3, "ddp"), (2, "fsdp")])
def test_a_run_whose_process_is_killed_goes_on_to_the_same_bits(
    processes: int, parallel: str, undisturbed: MakeFolder, tmp_path: Path
) -> None:
    fault = {"process": 1, "step": 4, "signal": "SIGKILL"}
    # An error that a scheduler's next attempt may not meet: see iskd.runtime.retries.
    with pytest.raises(OSError, match="process 1 left no report, as one that is killed"):
        run(tmp_path, processes, parallel, fault=fault)
    states = sorted(path.name for path in tmp_path.glob("work/*/checkpoint-*"))
    assert states == ["checkpoint-3", "checkpoint-4"]
    # The library's own word for weights that were split.
    split = list(tmp_path.glob("work/*/checkpoint-4/pytorch_model_fsdp.bin"))
    assert len(split) == (parallel == "fsdp")
    assert run(tmp_path, processes, parallel).resumed == [4]
    check_same(tmp_path, undisturbed(processes, parallel))


def test_who_was_ended_by_a_signal_is_not_taken_for_the_one_that_died() -> None:
    # torchrun ends process 0 because process 1 has died.
    with pytest.raises(
        ChildProcessError, match=r"^process 1 left no report, as one that is killed"
    ):
        _overall_report([Report(0, "terminated", "SIGTERM")], 2, 1, StopRequest())


@slow
def test_when_one_process_is_asked_to_stop_all_save_and_leave(
    undisturbed: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_SECONDS, "1000")
    fault = {"process": 1, "step": 4, "signal": "SIGUSR1"}
    with pytest.raises(Interrupted, match=r"^SIGUSR1 after step 5 of 8; its state is kept$"):
        run(tmp_path, 2, fault=fault)
    (state,) = tmp_path.glob("work/*/checkpoint-*")
    assert state.name == "checkpoint-5"
    # Both random states are in it, and dropout does not draw the same for both.
    draws = [torch.load(state / f"rng_state_{rank}.pth", weights_only=False) for rank in (0, 1)]
    assert not torch.equal(draws[0]["cpu"], draws[1]["cpu"])
    assert run(tmp_path, 2).resumed == [5]
    check_same(tmp_path, undisturbed(2, "ddp"))


@slow
def test_a_state_belongs_to_one_number_of_processes(tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError):
        run(tmp_path, 2, fault={"process": 0, "step": 4, "signal": "SIGKILL"})
    assert run(tmp_path, 1).resumed == []


@slow
def test_a_mistake_that_one_process_finds_is_the_jobs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^corpus: too short$"):
        run(tmp_path, 2, fault={"process": 1, "step": 2, "error": "mistake"})


@slow
def test_processes_that_start_from_other_models_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from iskd.runtime.job import run_rule\n"
        "with run_rule(snakemake) as job:\n"
        "    import torch\n"
        "    from iskd.runtime.distributed import check_alike, world\n"
        "    model = torch.nn.Linear(2, 2)\n"
        "    torch.nn.init.constant_(model.weight, 1.0)\n"
        "    torch.nn.init.constant_(model.bias, world().rank * 1e-6)\n"
        "    check_alike(model)\n"
    )
    with pytest.raises(RuntimeError, match="process 1 starts from another model than process 0"):
        run(tmp_path, 2, script=script)


# --- as jobs of Snakemake -------------------------------------------------------------------

SNAKEFILE = """
rule train:
    output:
        "results/train/with_dropout.safetensors",
        manifest="results/train/manifest.json",
    log:
        "results/logs/train.log",
    threads: 2
    resources:
        processes=2,
        parallel="ddp",
    params:
        seed=3,
        code="c0de",
        fault={fault},
    script:
        "{script}"
"""


def snakemake(folder: Path, fault: dict[str, Any] | None = None) -> "subprocess.Popen[str]":
    """Start Snakemake on a rule whose job takes two processes."""
    folder.mkdir(exist_ok=True)
    text = SNAKEFILE.format(fault=fault or {}, script=SCRIPT)
    (folder / "Snakefile").write_text(text)
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", "-c", "2", "--nolock"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def job_of(folder: Path) -> psutil.Process:
    """Wait until the job trains, and give its process."""
    log, lock = folder / "results/logs/train.log", folder / "results/.train.work/lock"
    while not (log.exists() and "waiting" in log.read_text()):
        time.sleep(0.1)
    holder = read_holder(lock)
    assert holder is not None
    return psutil.Process(holder["pid"])


@slow
def test_a_job_in_two_processes_publishes_once(tmp_path: Path) -> None:
    with snakemake(tmp_path) as running:
        printed, _ = running.communicate()
    assert running.returncode == 0, printed
    results = tmp_path / "results"
    assert sorted(path.name for path in results.iterdir()) == ["logs", "train"]
    run_json = json.loads((results / "train/run.json").read_text())
    assert (run_json["processes"], run_json["parallel"], run_json["threads"]) == (2, "ddp", 1)
    manifest = (results / "train/manifest.json").read_text()
    assert parse_statement(manifest).summary.keys() == {"with_dropout"}
    # How many processes it took is no part of the request, or another number would make it anew.
    assert "processes" not in manifest
    log = (results / "logs/train.log").read_text()
    assert log.count("step 8 of 8") == 1  # one process reports
    assert "published results/train" in log


@slow
def test_a_failed_process_ends_the_job_in_one_line(tmp_path: Path) -> None:
    with snakemake(tmp_path, {"process": 1, "step": 2, "error": "failure"}) as running:
        printed, _ = running.communicate()
    assert running.returncode == 1
    line = "train failed: RuntimeError: process 1 of 2: ZeroDivisionError: by nought"
    assert f"{line}; the traceback is in results/logs/train.log\n" in printed
    assert "Traceback" in (tmp_path / "results/logs/train.log").read_text()
    assert not (tmp_path / "results/train/manifest.json").exists()


@slow
def test_a_job_that_is_asked_to_stop_leaves_with_75_and_goes_on_later(
    undisturbed: MakeFolder, tmp_path: Path
) -> None:
    # Both processes wait in the fifth step, as in a slow one; the signal wakes them.
    with snakemake(tmp_path, {"process": None, "step": 4, "error": "wait"}) as running:
        job_of(tmp_path).send_signal(signal.SIGTERM)
        printed, _ = running.communicate()
    assert "exit status 75" in printed
    log = (tmp_path / "results/logs/train.log").read_text()
    assert "SIGTERM after step 5 of 8; its state is kept; call snakemake again" in log
    with snakemake(tmp_path) as running:
        printed, _ = running.communicate()
    assert running.returncode == 0, printed
    found = (tmp_path / "results/train/with_dropout.safetensors").read_bytes()
    wanted = undisturbed(2, "ddp") / "out/with_dropout.safetensors"
    assert found == wanted.read_bytes()


@slow
def test_a_job_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    with snakemake(tmp_path, {"process": None, "step": 4, "error": "wait"}) as running:
        job = job_of(tmp_path)
        family = job.children(recursive=True)
        assert len(family) == 3  # torchrun and two processes
        job.kill()
        running.communicate()
    gone, left = psutil.wait_procs(family, timeout=60)
    assert left == []
    assert len(gone) == 3
