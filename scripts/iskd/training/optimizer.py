"""The dual learning rate: a high one for compact blocks, a low one for the rest."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from iskd.settings import TrainingSettings

Grouping = Callable[[nn.Module, Collection[nn.Module], TrainingSettings], list[dict[str, Any]]]
"""Sort a model's trainable parameters into an optimiser's groups, its compact blocks apart."""


def parameter_groups(
    model: nn.Module, compact: Collection[nn.Module], settings: TrainingSettings
) -> list[dict[str, Any]]:
    """Sort every trainable parameter into exactly one optimiser group.

    Membership goes by module identity: the published code compared name prefixes, so that block 1
    took blocks 10 and 11 along. Vectors (biases, norms) have no weight decay, as is usual.
    Embeddings, which some leave out as well, do decay: they do in the published code, and a tied
    one is the output projection too.

    Args:
        model: the model to train.
        compact: modules whose parameters get the high learning rate.
        settings: of them count the learning rates and the weight decay.

    Returns:
        at most four groups, none of them empty, those of the low rate first
    """
    high = {id(p) for module in compact for p in module.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (id(parameter) in high, parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    rates = settings.learning_rate
    return [
        {
            "params": parameters,
            "lr": rates.compact if is_compact else rates.rest,
            "weight_decay": settings.weight_decay if is_matrix else 0.0,
        }
        for (is_compact, is_matrix), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def published_groups(
    model: nn.Module, compact: Collection[nn.Module], settings: TrainingSettings
) -> list[dict[str, Any]]:
    """Sort the parameters as the published code does, its defect included.

    There the rest is what does not start with the compact block's name, so that with
    ``transformer.h.1`` blocks 10 and 11 are in no group and stay as they are. One weight decay
    goes for all parameters, vectors too. For reproducing the paper only: ``parameter_groups`` is
    the sound way.

    Args:
        model: the model to train.
        compact: its one compact block.
        settings: of them count the learning rates and the weight decay.

    Returns:
        the group of the low rate, and that of the high one

    Raises:
        ValueError: it is not one module of the model, or has no trainable parameter.
    """
    (block,) = compact
    names = [name for name, module in model.named_modules() if module is block]
    if not names:
        raise ValueError("the compact block is no part of the model")
    prefix = names[0]
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    high = [p for name, p in named if name.startswith(prefix + ".")]
    low = [p for name, p in named if not name.startswith(prefix)]
    if not high:
        raise ValueError(f"the model has no trainable parameter under {prefix!r}")
    rates = settings.learning_rate
    return [
        {"params": parameters, "lr": rate, "weight_decay": settings.weight_decay}
        for parameters, rate in ((low, rates.rest), (high, rates.compact))
        if parameters
    ]


def make_optimizer(
    groups: list[dict[str, Any]], settings: TrainingSettings
) -> torch.optim.Optimizer:
    """Make Adam (decay added to the gradient) or AdamW (decay taken off the weight).

    On a GPU all parameters are brought up to date by one kernel, on a CPU where this is asked for.
    """
    kinds: dict[str, type[torch.optim.Adam]]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    fused = torch.cuda.is_available() or settings.fused or None
    return kinds[settings.optimizer](groups, betas=(0.9, settings.beta2), fused=fused)
