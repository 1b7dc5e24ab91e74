"""Count what training costs, in floating-point operations."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_forward(run: Callable[[], object]) -> int:
    """Count the FLOPs of a pass that leaves no trace, as :func:`count_flops` does.

    Args:
        run: the pass; called once, and draws no random numbers.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def count_flops(run: Callable[[], torch.Tensor], parameters: Iterable[nn.Parameter]) -> int:
    """Count the FLOPs of one forward and backward pass that leaves no trace.

    Matrix products and convolutions count, two operations for each multiplication with addition;
    whatever acts entry by entry does not, as is usual. The pass takes PyTorch's plain attention,
    the only one whose products the counter sees on every device; so the figure is the same on all
    of them, and leaves out what a fused kernel computes twice. Gradients and the states of
    torch's random generators are put back, so that training goes on bit for bit as if nothing had
    been counted.

    Args:
        run: gives the loss (a scalar with a gradient); called once.
        parameters: all parameters that may get a gradient from it.
    """
    kept = [(parameter, parameter.grad) for parameter in parameters]
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), sdpa_kernel(SDPBackend.MATH):
        for parameter, _ in kept:
            parameter.grad = None
        try:
            with FlopCounterMode(display=False) as counter:
                run().backward()
        finally:
            for parameter, gradient in kept:
                parameter.grad = gradient
    return int(counter.get_total_flops())
