"""Which calls NVML gets, and how the energy of several processes becomes the job's."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from iskd.provenance import energy
from iskd.provenance.energy import Energy
from iskd.runtime.job import _count_processors
from iskd.runtime.launch import _overall_report
from iskd.runtime.messages import Report


class NVMLError(Exception):
    """As pynvml's."""


def nvml(**replaced: Any) -> SimpleNamespace:
    """Two GPUs with a counter, and between them one that has none."""

    def consumption(index: int) -> int:
        if index == 1:
            raise NVMLError("not supported")
        return (index + 1) * 1000

    calls = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda index: b"GPU-old" if index == 0 else f"GPU-{index}",
        "nvmlDeviceGetTotalEnergyConsumption": consumption,
    }
    return SimpleNamespace(**(calls | replaced))


def test_every_gpu_with_a_counter_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []
    fake = nvml(nvmlShutdown=lambda: ended.append(True))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    # Older bindings give the identifier as bytes.
    assert energy._gpu_counters() == {"GPU-old": 1000, "GPU-2": 3000}
    assert ended == [True]


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NVMLError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=refuse))
    assert energy._gpu_counters() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert energy._gpu_counters() == {}


def ended(gpus: int, *joules: float | None) -> dict[str, Any]:
    reports = [
        Report(rank, "done", run={"gpus": gpus, "energy_joules": each})
        for rank, each in enumerate(joules)
    ]
    stop: Any = SimpleNamespace(signal_name=None)
    return _overall_report(reports, len(reports), 0, stop).run


def test_processes_add_up_their_gpus() -> None:
    how = ended(1, 5.0, 7.0)
    assert (how["gpus"], how["energy_joules"]) == (2, 12.0)
    # What one process does not know, nobody can add.
    assert ended(1, 5.0, None)["energy_joules"] is None


def test_processors_count_once_however_many_processes_have_read_them() -> None:
    meter: Any = SimpleNamespace(read=lambda: Energy(0, 9.0, energy.COVERS_PROCESSORS))
    how = ended(0, 8.5, 8.6)
    _count_processors(how, meter)
    assert (how["energy_joules"], how["energy_covers"]) == (9.0, energy.COVERS_PROCESSORS)
    how = ended(1, 5.0, 7.0)
    _count_processors(how, meter)
    assert how["energy_joules"] == 12.0
