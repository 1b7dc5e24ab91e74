"""Floating-point operations of a forward pass, by torch's own counter."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


@torch.inference_mode()
def flops_per_token(model: PreTrainedModel, length: int) -> int:
    """Count the FLOPs of one token in a text of ``length`` tokens, output layer included.

    A multiplication and an addition count as two. The counter knows matrix products; softmax,
    norms and activations are left out, as is usual.
    """
    ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
    # The counter does not know the CPU's fused attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    return round(counter.get_total_flops() / length)
