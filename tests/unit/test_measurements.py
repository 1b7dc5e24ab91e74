"""What clocks and sensors measured, from jobs' reports to one table."""

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iskd.evaluation.measurements import collect_measurements
from iskd.provenance import energy
from iskd.provenance.energy import EnergyMeter
from iskd.provenance.ledger import Ledger, Spent
from tests.measured import is_measured

TEACHER = {"teacher": "t", "arm": "teacher", "seed": None, "step": 0}
STEPS = [{"teacher": "t", "arm": "iskd", "seed": 1, "step": step} for step in (1, 2)]
REDUCTIONS = {("t", "teacher", None, 0): 0.0, ("t", "iskd", 1, 2): 0.4}


def job(folder: Path, name: str, **run: Any) -> str:
    place = folder / name
    place.mkdir()
    if run:
        report = {"seconds": 1.0, "gpus": 0, "threads": 2, "processes": 1} | run
        (place / "run.json").write_text(json.dumps(report))
    return str(place / "manifest.json")


def collected(folder: Path, trained: list[str], evaluated: list[str]) -> dict[Any, Any]:
    line = {"who": "model", "batch_size": 1, "phase": "decode", "repeat": 0, "seconds": 1.0}
    records = [line | {"tokens": 50}, line | {"who": "teacher", "tokens": 100}]
    repeats = folder / "repeats.jsonl"
    repeats.write_text("".join(json.dumps(record) + "\n" for record in records))
    spec = {
        "study": "s",
        "repeats": STEPS[1:],
        "trained": [TEACHER, *STEPS],
        "evaluated": [TEACHER, *STEPS[1:] * 2],
        "chained": ["iskd"],
    }
    files = {"repeats": [str(repeats)], "trained": trained, "evaluated": evaluated}
    rows = collect_measurements(files, spec, REDUCTIONS)
    return {(r["arm"], r["step"], r["task"], r["metric"]): r for r in rows}


def test_costs_are_all_attempts_of_all_steps_times_devices(tmp_path: Path) -> None:
    trained = [
        job(tmp_path, "teacher", seconds_in_all=3600.0),
        job(tmp_path, "one", seconds_in_all=360.0, gpus=4, processes=4, energy_joules_in_all=5.0),
        job(tmp_path, "two", seconds_in_all=720.0, gpus=1, energy_joules_in_all=7.0),
    ]
    evaluated = [job(tmp_path, f"e{i}", seconds_in_all=36.0) for i in range(3)]
    found = collected(tmp_path, trained, evaluated)
    # 0.1 h on four GPUs, then 0.2 h on one; the teacher's hour on two cores.
    assert found["iskd", 2, "cost", "device_hours"]["value"] == pytest.approx(0.6)
    assert found["iskd", 2, "cost", "energy"]["value"] == 12
    assert found["teacher", 0, "cost", "device_hours"]["value"] == 2
    assert ("teacher", 0, "cost", "energy") not in found
    assert found["iskd", 2, "cost", "evaluation_hours"]["value"] == pytest.approx(0.04)
    # Only what is evaluated has a reduction, and a row.
    assert ("iskd", 1, "cost", "device_hours") not in found
    assert found["iskd", 2, "efficiency", "decode_b1_ratio"]["value"] == 0.5
    assert found["iskd", 2, "efficiency", "decode_b1"]["reduction"] == 0.4
    assert found["teacher", 0, "efficiency", "decode_b1"]["value"] == 100


def test_without_a_report_there_is_no_number(tmp_path: Path) -> None:
    trained = [job(tmp_path, "teacher"), job(tmp_path, "one"), job(tmp_path, "two", seconds=9.0)]
    evaluated = [job(tmp_path, "e0", seconds=9.0), job(tmp_path, "e1", seconds=9.0)]
    evaluated += [job(tmp_path, "e2")]
    found = collected(tmp_path, trained, evaluated)
    assert {key[:2] for key in found if key[2] == "cost"} == {("teacher", 0)}


# --- the ledger of attempts -----------------------------------------------------------------


def test_attempts_add_up_over_kills(tmp_path: Path) -> None:
    request = {"rule": "train", "seed": 1}
    first = Ledger(tmp_path, request, lambda: Spent(10.0, 3.0))
    first.note()
    first.note()  # a later state of the same attempt replaces what it noted before
    second = Ledger(tmp_path, request, lambda: Spent(4.0, 2.0))
    second.note()
    third = Ledger(tmp_path, request, lambda: Spent(1.0, 1.0))
    assert third.in_all(Spent(1.5, 1.0)) == Spent(15.5, 6.0)
    # What one attempt does not know, nobody can add.
    assert third.in_all(Spent(1.5, None)) == Spent(15.5, None)
    other = Ledger(tmp_path, request | {"seed": 2}, lambda: Spent(0.0, None))
    assert other.in_all(Spent(2.0, 1.0)) == Spent(2.0, 1.0)


def test_a_damaged_ledger_is_begun_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, {}, lambda: Spent(1.0, None))
    ledger.path.write_text("{broken")
    assert Ledger(tmp_path, {}, lambda: Spent(1.0, None)).before == []


# --- energy ---------------------------------------------------------------------------------


def package(folder: Path, name: str, joules: float, kind: str = "package-0") -> Path:
    zone = folder / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text(f"{kind}\n")
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    (zone / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    return zone


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_gpu_counters", dict)


@pytest.mark.usefixtures("no_gpus")
def test_processors_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 100)
    package(tmp_path, "intel-rapl:1", 900, "package-1")
    package(tmp_path, "intel-rapl:0:0", 5, "core")
    package(tmp_path, "intel-rapl:2", 50, "psys")
    meter = EnergyMeter(tmp_path, look=1000)
    package(tmp_path, "intel-rapl:0", 130)
    package(tmp_path, "intel-rapl:1", 20, "package-1")  # began again at 0, after 1000 joules
    package(tmp_path, "intel-rapl:2", 500, "psys")
    found = meter.read()
    meter.stop()
    assert found.joules == pytest.approx(30 + 120)
    assert found.gpus == 0
    assert found.covers == energy.COVERS_PROCESSORS


@pytest.mark.usefixtures("no_gpus")
def test_a_counter_that_started_again_unseen_is_looked_at_in_between(tmp_path: Path) -> None:
    zone = package(tmp_path, "intel-rapl:0", 900)
    looked = threading.Event()
    meter = EnergyMeter(tmp_path, look=0.01)
    (counter,) = meter._processors
    read = counter.taken

    def taken() -> float | None:
        looked.set()
        return read()

    counter.taken = taken  # type: ignore[method-assign]
    for joules in (100, 950, 50):
        (zone / "energy_uj").write_text(f"{int(joules * 1e6)}")
        looked.clear()
        assert looked.wait(10)
        looked.clear()
        assert looked.wait(10)
    meter.stop()
    # Up to 1000, on to 950, up to 1000 and on to 50.
    assert meter.read().joules == pytest.approx(200 + 850 + 100)


@pytest.mark.usefixtures("no_gpus")
def test_without_a_counter_nothing_is_reported(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path / "none").read().joules is None
    zone = package(tmp_path, "intel-rapl:0", 5)
    meter = EnergyMeter(tmp_path, look=1000)
    (zone / "energy_uj").unlink()
    assert meter.read() == energy.Energy(0, None, None)
    meter.stop()


def test_a_gpus_counter_is_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = {"GPU-a": 1_000, "GPU-b": 5_000}
    monkeypatch.setattr(energy, "_gpu_counters", lambda: dict(counters))
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        current_device=lambda: 0,
        get_device_properties=lambda _: SimpleNamespace(uuid="b"),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    meter = EnergyMeter(tmp_path)
    counters["GPU-b"] = 12_500
    assert meter.read() == energy.Energy(1, 7.5, energy.COVERS_GPUS)
    del counters["GPU-b"]
    assert meter.read().joules is None


# --- which files are measured ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("metrics.csv", False),
        ("measurements.csv", True),
        ("paper/measurements.csv", True),
        ("paper/manifest.json", True),
        ("paper/table_main.tex", False),
        ("paper/table_costs.tex", True),
        ("paper/figure_pareto_toy.pdf", True),
        ("paper/figure_loss_toy.pdf", False),
        ("figure_pareto/toy/pareto.png", True),
        ("figure_tradeoff/toy/tradeoff.png", False),
        ("measure_efficiency/toy/kd/seed_1/step_02/repeats.jsonl", True),
        ("substitute_block/toy/iskd/seed_1/step_01/README.md", True),
        ("substitute_block/toy/iskd/seed_1/step_01/model.safetensors", False),
        ("substitute_block/toy/iskd/seed_1/step_01/run.json", True),
        ("paper_numbers/numbers.tex", False),
        ("paper_measured_numbers/numbers.tex", True),
        ("logs/evaluate/x.log", True),
    ],
)
def test_what_a_second_run_need_not_have_again(name: str, measured: bool) -> None:
    assert is_measured(name) is measured
