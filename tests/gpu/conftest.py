"""These tests need a CUDA device; without one each says that it was skipped, and why."""

import os

import pytest
import torch

# As a job does: cuBLAS reads it when CUDA comes up, for sums in a fixed order.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
