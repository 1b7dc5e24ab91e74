"""What a teacher was recorded to say about training sequences, looked up batch by batch.

``record_teacher`` writes it (:mod:`iskd.training.recording`), one artifact for each step: a
training reads those of its own step and of the steps before. The files are mapped into memory, and
of each only the sequences of a batch are read.

An artifact holds ``answers.json``, which describes it, and files ``answers-*.safetensors`` with
``rows`` (sequences,), the places of the sequences in the corpus, and either ``hidden`` (sequences,
positions - 1, hidden size), the teacher's last hidden states, final norm included; or ``tokens``
(sequences, positions - 1, draws) and ``log_share`` (sequences, positions - 1), as
:class:`~iskd.training.row_losses.TeacherDraws` has them. A sequence's last
position has no next token and is left out. The first artifact of hidden states has
``projection.safetensors``, the teacher's output projection.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from iskd.provenance.tensors import ANSWERS_ABOUT, PROJECTION, answer_files
from iskd.training.chunked import Target, TeacherHead
from iskd.training.row_losses import TeacherDraws


class TeacherCache:
    """The recorded answers to the sequences of one training.

    Args:
        folders: the artifacts, the first step's first.
        rows: for each sequence of the training its place in the corpus, int64 (sequences,).

    Attributes:
        vocabulary: entries of the teacher's predictions.

    Raises:
        RuntimeError: there is no answer to one of the sequences.
    """

    def __init__(self, folders: Sequence[Path], rows: torch.Tensor) -> None:
        about = json.loads((folders[0] / ANSWERS_ABOUT).read_text(encoding="utf-8"))
        self.vocabulary: int = about["vocabulary"]
        self._sampled = about["kind"] == "sampled"
        self._open: list[Any] = [
            safe_open(file, framework="pt") for folder in folders for file in answer_files(folder)
        ]
        self._places = self._find(rows, [opened.get_tensor("rows") for opened in self._open])
        self._head = None if self._sampled else _projection(folders[0] / PROJECTION)

    @staticmethod
    def _find(rows: torch.Tensor, recorded: list[torch.Tensor]) -> list[tuple[int, int]]:
        """Give for each row the number of its file, and its place there."""
        known = torch.cat(recorded)
        inside = torch.cat([torch.arange(len(part)) for part in recorded])
        counts = torch.tensor([len(part) for part in recorded])
        files = torch.arange(len(recorded)).repeat_interleave(counts)
        order = known.argsort()
        place = torch.searchsorted(known[order], rows).clamp_max(len(known) - 1)
        found = order[place]
        missing = rows[known[found] != rows]
        if len(missing):
            raise RuntimeError(
                f"{len(missing)} sequences of the training have no recorded answer, the first is "
                f"row {int(missing[0])} of the corpus: what was recorded is of another study"
            )
        return list(zip(files[found].tolist(), inside[found].tolist(), strict=True))

    def target(self, index: torch.Tensor, device: torch.device) -> Target:
        """Give what KL compares with, at all positions but each sequence's last.

        Args:
            index: which sequences of the training, int (sequences,).
            device: where it is needed.

        Returns:
            of (sequences * (positions - 1)) rows, sequence after sequence
        """
        places = [self._places[number] for number in index.tolist()]
        if self._sampled:
            tokens = self._read("tokens", places).long().to(device)
            return TeacherDraws(
                tokens.flatten(0, 1), self._read("log_share", places).to(device).flatten()
            )
        assert self._head is not None  # noqa: S101 - narrows the type
        self._head.to(device)
        return TeacherHead(self._read("hidden", places).to(device).flatten(0, 1), self._head)

    def _read(self, name: str, places: Sequence[tuple[int, int]]) -> torch.Tensor:
        parts = [self._open[file].get_slice(name)[place : place + 1] for file, place in places]
        # torch cannot join every type of whole numbers.
        return torch.cat([part if part.is_floating_point() else part.int() for part in parts])


def _projection(file: Path) -> nn.Linear:
    tensors: dict[str, Any] = load_file(file)
    weight = tensors["weight"]
    with torch.device("meta"):
        head = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in tensors)
    head.load_state_dict(tensors, assign=True)
    return head.requires_grad_(requires_grad=False)
