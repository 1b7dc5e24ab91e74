"""The benchmark for a GPU runs here too, at toy size, and ends in its time whatever happens."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.benchmarks.budget import Budget, Enough, Stopwatch
from tests.benchmarks.gpu import SHAPES, WAYS, Run, fitting_batch, peak_of, report, toy

ROOT = Path(__file__).resolve().parents[2]


def run(out: Path, *options: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "toy shapes on a processor; the numbers say nothing about any card" in done.stdout
    return out.read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_toy_run_fills_the_whole_table(tmp_path: Path) -> None:
    text = run(tmp_path / "folder" / "gpu.md", "--toy")
    assert text.startswith("no GPU; ")
    measured = [row for row in rows(text) if "(toy)" in row[0]]
    wanted = [(f"{shape.name} (toy), 32 tokens", way) for shape in SHAPES for way in WAYS]
    assert [(row[0], row[1]) for row in measured] == wanted
    for row in measured:
        assert len(row) == 7
        assert float(row[3].replace(",", "")) > 0
    assert "| GPT-2 small, one H100 | llm.c, as published | - | 468,000 | 40.5 % | - | - |" in text
    assert rows(text)[-1][1].endswith(" ms")


def test_what_has_no_time_left_says_so() -> None:
    how = Run(torch.device("cpu"), compile=False, measured=0.2, updates=30)
    text = report(tuple(map(toy, SHAPES)), how, 0.0, (16,))
    reasons = [row[3] for row in rows(text) if "(toy)" in row[0]]
    assert reasons == ["left out: 0 s are left, and it takes 3 s"] * len(SHAPES) * len(WAYS)


def test_a_part_that_takes_too_long_is_ended_and_one_that_fails_says_why() -> None:
    def endless() -> list[str]:
        try:
            time.sleep(60)
        except Exception as error:
            raise RuntimeError("compilation failed") from error
        return []

    def failing() -> list[str]:
        raise ValueError("one line\n\nand another\nand more")

    begun = time.perf_counter()
    reason = Budget(seconds=2.0, parts=4, least=0.01).spend(endless)
    assert reason == "not done in its share of the time, 1 s"
    assert time.perf_counter() - begun < 30
    budget = Budget(seconds=100.0, parts=2, least=0.01)
    assert [budget.spend(failing), budget.spend(lambda: ["5"])] == ["one line and another", ["5"]]


def test_a_stopwatch_fits_its_updates_into_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    watch = Stopwatch(seconds=8.0, begun=100.0)
    for update in range(1000):
        try:
            watch(update, 1000)
        except Enough:
            break
        clock[0] += 10.0 if update < 3 else 2.0  # it compiles at first
    assert (watch.setup, watch.steps, watch.step_seconds) == (30.0, 4, 2.0)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peaks_are_found_by_a_cards_name(name: str, teraflops: float | None) -> None:
    assert peak_of(name) == (teraflops and teraflops * 1e12)


def test_batches_fit_and_are_powers_of_two() -> None:
    fits = [fitting_batch(SHAPES[0], int(room * 1e9)) for room in (8, 24, 80, 1000)]
    assert fits == sorted(fits)
    assert fits[0] < fits[-1] == SHAPES[0].most
    assert all(size & (size - 1) == 0 for size in fits)
