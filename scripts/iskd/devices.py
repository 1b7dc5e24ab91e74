"""Which GPUs this machine has, found without asking them: that would take seconds and memory."""

import os
import re
from collections.abc import Mapping
from pathlib import Path


def visible_gpus(devices: Path = Path("/dev"), environ: Mapping[str, str] = os.environ) -> int:
    """Count NVIDIA's GPUs that a process started here may use.

    Args:
        devices: where the system's devices lie.
        environ: whose ``CUDA_VISIBLE_DEVICES`` may hide some of them.
    """
    there = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return there
    return min(there, sum(name.strip() not in ("", "-1") for name in named.split(",")))
