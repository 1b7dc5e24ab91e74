"""GPUs are counted by what stands in /dev and what the environment leaves visible."""

from pathlib import Path

import pytest

from iskd.devices import visible_gpus


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({}, 2),
        ({"CUDA_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5d3a, GPU-77f0"}, 2),
    ],
)
def test_gpus_that_a_process_may_use(environ: dict[str, str], seen: int, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path, environ) == seen


def test_a_machine_without_gpus_has_none(tmp_path: Path) -> None:
    assert visible_gpus(tmp_path, {}) == 0
