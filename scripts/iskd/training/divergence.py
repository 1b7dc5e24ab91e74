"""How far a model's predictions are from its teacher's: KL on some positions of some text."""

import torch
from torch.nn import functional
from transformers import PreTrainedModel

ROWS = 256
"""Positions that go through the output projection at once."""

MOST_ENTRIES = 2**27
"""Entries of the teacher's distributions that are kept, at two bytes each: 256 MB."""


class TeacherAnswers:
    """The distributions of a teacher over the next token, kept to be compared with.

    Of each sequence as many positions as memory allows, evenly spaced; they are read with all that
    comes before them.

    Args:
        teacher: is put into evaluation mode.
        sequences: tokens, int (sequences, length).
        batch_size: sequences that are run at once; comparisons are by the same batches.
        half: compute under bfloat16 autocast.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        sequences: torch.Tensor,
        batch_size: int,
        *,
        half: bool = False,
    ) -> None:
        self._half = half
        self._batches = [part.long().to(teacher.device) for part in sequences.split(batch_size)]
        length = sequences.shape[1] - 1
        each = max(1, min(length, MOST_ENTRIES // (len(sequences) * teacher.config.vocab_size)))
        self._positions = torch.linspace(0, length - 1, each).round().long().to(teacher.device)
        self._kept: list[list[tuple[torch.Tensor, float]]] = []
        teacher.eval()
        for number in range(len(self._batches)):
            chunks = []
            for logits in self._logits(teacher, number):
                logs = functional.log_softmax(logits, dim=-1)
                # Rounded first: so a model that is the teacher is at no distance from it.
                chances = logs.exp().to(torch.bfloat16)
                chunks.append((chances, -(chances.float() * logs).sum().item()))
            self._kept.append(chunks)

    @torch.no_grad()
    def _logits(self, model: PreTrainedModel, number: int) -> list[torch.Tensor]:
        ids = self._batches[number]
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._half):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            rows = hidden[:, self._positions].flatten(0, 1)
            head = model.get_output_embeddings()
            return [head(part).float() for part in rows.split(ROWS)]

    def divergence(self, model: PreTrainedModel, number: int) -> float:
        """Give the mean KL(teacher || model) over the positions of one batch, in nats.

        Args:
            model: of the teacher's vocabulary.
            number: of the batch.
        """
        total, rows = 0.0, 0
        for logits, (chances, entropy) in zip(
            self._logits(model, number), self._kept[number], strict=True
        ):
            logs = functional.log_softmax(logits, dim=-1)
            total -= entropy + (chances.float() * logs).sum().item()
            rows += len(logits)
        return total / rows
