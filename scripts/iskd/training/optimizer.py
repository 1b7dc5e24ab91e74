"""The dual learning rate: a high one for what is new, a low one for the rest."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn


def parameter_groups(
    model: nn.Module,
    new: Collection[nn.Module],
    *,
    rate_new: float,
    rate_rest: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Sort every trainable parameter into exactly one optimiser group.

    Membership goes by module identity: the published code compared name prefixes, so that block 1
    took blocks 10 and 11 along. Vectors (biases, norms) have no weight decay, as is usual.

    Args:
        model: the model to train.
        new: modules whose parameters get ``rate_new``.
        rate_new: learning rate of the new modules.
        rate_rest: learning rate of all other parameters.
        weight_decay: decay of parameters with two or more axes.
    """
    fresh = {id(p) for module in new for p in module.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (id(parameter) in fresh, parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate_new if is_new else rate_rest,
            "weight_decay": weight_decay if is_matrix else 0.0,
        }
        for (is_new, is_matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(
    name: str, groups: list[dict[str, Any]], *, beta2: float
) -> torch.optim.Optimizer:
    """Make Adam (decay added to the gradient) or AdamW (decay taken off the weight)."""
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups, betas=(0.9, beta2))
