"""What a model is trained to do, as a loss over one batch."""

from collections.abc import Callable

import torch
from torch.nn import functional
from transformers import PreTrainedModel

Objective = Callable[[PreTrainedModel, dict[str, torch.Tensor]], torch.Tensor]


def next_token_loss(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Give the mean cross-entropy of the next token, in nats.

    ``batch`` holds ``input_ids`` of shape (sequences, positions).
    """
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    return _cross_entropy(logits, batch["input_ids"])


def _cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten().long()
    )


class Distillation:
    """Next-token loss mixed with the forward KL divergence from the teacher.

    loss = (1 - weight) * CE + weight * T^2 * KL(teacher_T || student_T), mean over positions, with
    both distributions softened by the temperature T; the factor T^2 keeps the gradient's size
    (Hinton et al. 2015, section 2).
    """

    def __init__(self, teacher: PreTrainedModel, *, temperature: float, weight: float) -> None:
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)
        self.temperature = temperature
        self.weight = weight

    def __call__(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Give the mixed loss in nats for ``input_ids`` of shape (sequences, positions)."""
        ids = batch["input_ids"]
        self.teacher.to(ids.device)
        with torch.inference_mode():
            target = self.teacher(input_ids=ids, use_cache=False).logits[:, :-1].float()
        logits = model(input_ids=ids, use_cache=False).logits
        own = logits[:, :-1].float()
        divergence = functional.kl_div(
            functional.log_softmax(own / self.temperature, dim=-1).flatten(0, 1),
            functional.log_softmax(target.clone() / self.temperature, dim=-1).flatten(0, 1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * _cross_entropy(logits, ids) + (
            self.weight * self.temperature**2 * divergence
        )
