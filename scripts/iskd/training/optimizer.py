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
    Embeddings, which some leave out as well, do decay: they do in the published code, and a tied
    one is the output projection too.

    Args:
        model: the model to train.
        new: modules whose parameters get ``rate_new``.
        rate_new: learning rate of the new modules.
        rate_rest: learning rate of all other parameters.
        weight_decay: decay of parameters with two or more axes.

    Returns:
        at most four groups, none of them empty, those of the low rate first
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


def published_groups(
    model: nn.Module,
    prefix: str,
    *,
    rate_new: float,
    rate_rest: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Sort the parameters as the published code does, its defect included.

    There the rest is what does not start with the new block's name, so that with
    ``transformer.h.1`` blocks 10 and 11 are in no group and stay as they are. One weight decay
    goes for all parameters, vectors too. For reproducing the paper only: ``parameter_groups`` is
    the sound way.

    Args:
        model: the model to train.
        prefix: name of the new block, without a dot at its end.
        rate_new: learning rate of the new block.
        rate_rest: learning rate of all that does not start with ``prefix``.
        weight_decay: decay of every parameter.

    Returns:
        the group of the low rate, and that of the high one

    Raises:
        ValueError: no trainable parameter lies under that name.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fresh = [p for name, p in named if name.startswith(prefix + ".")]
    rest = [p for name, p in named if not name.startswith(prefix)]
    if not fresh:
        raise ValueError(f"the model has no trainable parameter under {prefix!r}")
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay}
        for parameters, rate in ((rest, rate_rest), (fresh, rate_new))
        if parameters
    ]


def make_optimizer(
    name: str, groups: list[dict[str, Any]], *, beta2: float
) -> torch.optim.Optimizer:
    """Make Adam (decay added to the gradient) or AdamW (decay taken off the weight).

    On a GPU all parameters are brought up to date by one kernel.
    """
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[name](groups, betas=(0.9, beta2), fused=torch.cuda.is_available() or None)
