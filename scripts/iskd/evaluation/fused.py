"""GELU in one operation instead of eight, or in none of its own, while a model only reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.phi.modeling_phi import PhiMLP
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The layer before GELU in the blocks where that is "gelu_new".
_BEFORE: dict[type[nn.Module], str] = {GPT2MLP: "c_fc", PhiMLP: "fc1"}


class _LinearGELU(nn.Module):
    """A linear layer and GELU's tanh approximation, computed where the product still lies in cache.

    oneDNN's operation, which torch's own compiler takes on processors. As a second operation GELU
    takes half as long as the product or, where its inputs are large, several times as long.
    """

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        super().__init__()
        # Conv1D keeps (inputs, outputs); with that, wide layers take oneDNN twice as long.
        turned = isinstance(layer, Conv1D)
        self._weight = layer.weight.detach().t().contiguous() if turned else layer.weight.detach()
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return _linear_gelu(hidden, self._weight, self._bias)


def _linear_gelu(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "gelu", [], "tanh")


@cache
def has_linear_gelu() -> bool:
    """Tell whether oneDNN's operation is there, and does what is expected of it.

    torch promises neither for an operation that it keeps to itself. Without it a model keeps its
    products, and GELU is an operation of its own.
    """
    hidden, weight = torch.linspace(-9, 9, 12).reshape(3, 4), torch.linspace(-1, 1, 8).reshape(2, 4)
    for bias in (None, torch.tensor([0.5, -0.5])):
        try:
            found = _linear_gelu(hidden, weight, bias)
        except (AttributeError, RuntimeError, TypeError):
            return False
        wanted = functional.gelu(functional.linear(hidden, weight, bias), approximate="tanh")
        if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-5, atol=1e-6):
            return False
    return True


@contextmanager
def fused_gelu(model: "PreTrainedModel") -> Iterator[None]:
    """Let torch compute GELU's tanh approximation as a whole, on a processor with what precedes it.

    transformers' "gelu_new" (GPT-2, Phi) writes the same formula as eight operations, which take a
    sixth of a small model's forward pass on a processor. Values differ by rounding only; a
    model's own modules are back afterwards. GPT-2's widening layers are copied meanwhile, a
    third of its blocks' weights.

    Args:
        model: a model that is not being trained.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []

    def replace(parent: nn.Module, name: str, module: nn.Module) -> None:
        replaced.append((parent, name, parent.get_submodule(name)))
        setattr(parent, name, module)

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is not NewGELUActivation:
                continue
            before = _BEFORE.get(type(parent))
            layer = getattr(parent, before) if before else None
            if before and isinstance(layer, nn.Linear | Conv1D) and _is_fusible(layer):
                replace(parent, before, _LinearGELU(layer))
                replace(parent, name, nn.Identity())
            else:
                replace(parent, name, nn.GELU(approximate="tanh"))
    try:
        yield
    finally:
        for parent, name, module in replaced:
            setattr(parent, name, module)


def _is_fusible(layer: nn.Linear | Conv1D) -> bool:
    """Tell whether oneDNN computes a layer as exactly as torch does: in float32, on a processor."""
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and has_linear_gelu()
