"""An exported model beside the one that it was made from: logits and greedy text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from iskd.serving.speculation import PROMPTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 16
"""Tokens that are written after each prompt."""

Logits = Callable[[list[int]], NDArray[np.float32]]
"""Gives the logits, (vocabulary), of what follows a text."""


@dataclass(frozen=True)
class Agreement:
    """How far an exported model is the original.

    Attributes:
        same: prompts whose greedy text is the same.
        prompts: how many there were.
        distance: the largest difference of a logit where the texts are the same so far.
    """

    same: int
    prompts: int
    distance: float

    @property
    def agrees(self) -> bool:
        """Whether all texts are the same."""
        return self.same == self.prompts

    def __str__(self) -> str:
        return (
            f"{self.same} of {self.prompts} greedy texts of {NEW_TOKENS} tokens are the same, "
            f"logits differ by at most {self.distance:.2g}"
        )


def check_prompts(tokenizer: "PreTrainedTokenizerBase", *, room: int) -> list[list[int]]:
    """Give the tokens of a few prompts that leave room to write."""
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS[:3]]
    return [ids[: max(1, room - NEW_TOKENS)] for ids in prompts]


@torch.inference_mode()
def compare(
    model: "PreTrainedModel", exported: Logits, prompts: Sequence[Sequence[int]]
) -> Agreement:
    """Continue prompts greedily by a model and compare each step with an exported one's.

    Args:
        model: the original, in the precision in which it was written.
        exported: the logits after a text by the exported one.
        prompts: tokens.
    """
    same, distance = 0, 0.0
    for prompt in prompts:
        text = list(prompt)
        for _ in range(NEW_TOKENS):
            own = model(input_ids=torch.tensor([text], device=model.device)).logits[0, -1]
            other = torch.from_numpy(np.array(exported(text), np.float32))
            distance = max(distance, float((own.float().cpu() - other).abs().max()))
            token = int(own.argmax())
            if token != int(other.argmax()):
                break
            text.append(token)
        else:
            same += 1
    return Agreement(same, len(prompts), distance)


def logits_of(model: "PreTrainedModel") -> Logits:
    """Give what asks another model of transformers for the logits after a text."""

    def logits(text: list[int]) -> NDArray[np.float32]:
        found = model(input_ids=torch.tensor([text], device=model.device)).logits[0, -1]
        own: NDArray[np.float32] = found.float().cpu().numpy()
        return own

    return logits
