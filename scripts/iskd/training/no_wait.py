"""What keeps a training's process ahead of its device.

Kernels are queued and run later. Whoever reads a number off the device in the middle of an update
empties the queue, and the device then waits for the process to fill it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import masking_utils


@contextmanager
def one_sequence_each() -> Iterator[None]:
    """Have the library take for granted that a row of a batch is one sequence.

    Before each forward pass it looks at the positions for several sequences packed into one row,
    and reads the answer off the device. The positions of a training count from 0 to the end, as
    the model itself makes them, so that the answer is always the same.
    """
    looked = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = _none
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looked


def _none(position_ids: torch.Tensor) -> None:
    """Give the library's answer for positions that count on."""
    del position_ids
