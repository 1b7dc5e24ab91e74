"""What the bits of a computation depend on besides its inputs and its code."""

from typing import Any

import torch


def bits_depend_on(device: torch.device) -> dict[str, Any]:
    """Describe what computes here: a float sum depends on the device, on threads and on torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
