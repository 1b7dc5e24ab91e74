"""An update of the weights reads no number off its tensors: a device would have to wait for it."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, masking_utils

from iskd.settings import ObjectiveSettings
from iskd.training import objectives
from iskd.training.loop import fine_tune
from iskd.training.no_wait import one_sequence_each
from iskd.training.objectives import Mixture
from tests.unit.test_fine_tune import FAMILIES, SETTINGS, fresh, random_sequences

READS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal"}


class Watched(Exception):  # noqa: N818 - no error
    """End a training of which enough was seen."""


class Reads(TorchDispatchMode):
    """Note what needs a tensor's numbers before the process can go on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.optimizing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS and not self.optimizing:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads() -> Iterator[Reads]:
    """Give the mode, which looks away while an optimiser on a processor counts its steps."""
    mode = Reads()

    def begin(*_: Any) -> None:
        mode.optimizing = True

    def end(*_: Any) -> None:
        mode.optimizing = False

    hooks = [register_optimizer_step_pre_hook(begin), register_optimizer_step_post_hook(end)]
    yield mode
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("large", [2, 10**6])
def test_an_update_reads_nothing(
    family: str, large: int, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "LARGE_VOCABULARY", large)
    spec = ObjectiveSettings(next_token=0.5, kl=0.5, hidden=1.0, temperature=2.0)

    def watch(update: int, total: int) -> None:
        # Of 110 updates every second is reported, and a report reads the losses: the third is not.
        if update == 2:
            stack.enter_context(reads)
        if update == 3:
            raise Watched

    with pytest.raises(Watched), ExitStack() as stack:
        fine_tune(
            fresh(family),
            random_sequences(110, length=4),
            replace(SETTINGS, batch_size=1),
            seed=1,
            objective=Mixture(spec, fresh(family)),
            on_update=watch,
        )
    assert reads.found == []


def test_what_reads_is_found(reads: Reads) -> None:
    model = fresh("llama")
    with reads:
        model(input_ids=random_sequences(2).long(), use_cache=False)
    assert reads.found == ["_local_scalar_dense"]  # the library looks for packed sequences


def test_the_library_would_find_one_sequence_in_each_row() -> None:
    model: PreTrainedModel = fresh("llama")
    ids = random_sequences(2).long()
    looked, answers = masking_utils.find_packed_sequence_indices, []

    def noted(positions: torch.Tensor) -> Any:
        answers.append(looked(positions))
        return answers[-1]

    masking_utils.find_packed_sequence_indices = noted
    try:
        wanted = model(input_ids=ids, use_cache=False).logits
        with one_sequence_each():
            found = model(input_ids=ids, use_cache=False).logits
        assert masking_utils.find_packed_sequence_indices is noted
    finally:
        masking_utils.find_packed_sequence_indices = looked
    assert answers == [None]
    assert torch.equal(found, wanted)
