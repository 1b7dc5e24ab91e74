"""What blocks that are left out did, fitted into the MLP before each gap, in closed form.

ReplaceMe (arXiv 2505.02819) puts one linear map behind that MLP and merges it with the MLP's
output projection. Here the projection itself is refitted by ridge regression, of which such a map
is a special case, as blocks of recipe ``parts`` are (:mod:`iskd.models.reconstruction`). Nothing
is added to the model.
"""

import logging
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from iskd.models.activations import BlockCall
from iskd.models.families import family_of
from iskd.models.reconstruction import BlockFit
from iskd.models.substitution import block_sizes
from iskd.training.trials import BlockWalk, ReturningWalk

log = logging.getLogger("iskd.baselines")


def refit_before_gaps(
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    kept: Sequence[int],
    calibration: torch.Tensor,
    batch_size: int,
    *,
    half: bool = False,
) -> list[int]:
    """Refit the last block before each gap to what the teacher's last block in the gap gives.

    From the first gap to the last: a block is fitted to the inputs that it has in the smaller
    model. A gap at the very beginning has no block before it and stays as it is.

    Args:
        model: the smaller one; changed in place.
        teacher: the whole one.
        kept: the teacher's blocks that the model has, in order.
        calibration: sequences, int (sequences, length).
        batch_size: sequences that are run at once.
        half: run blocks under bfloat16 autocast; the fits stay in float32 and float64.

    Returns:
        the refitted blocks, by the teacher's count
    """
    own = ReturningWalk(model, calibration, batch_size, half=half)
    goal = BlockWalk(teacher, calibration, batch_size, half=half)
    blocks = family_of(model.config).blocks(model)
    ends = [*(later - 1 for later in kept[1:]), teacher.config.num_hidden_layers - 1]
    refitted = []
    for place, (index, end) in enumerate(zip(kept, ends, strict=True)):
        sizes = block_sizes(model.config, place)
        if end == index or not sizes.mlp:
            continue
        own.go_to(place)
        while goal.index < end:
            goal.advance()
        calls = [
            BlockCall(call.hidden, call.args, call.kwargs, theirs.output)
            for call, theirs in zip(own.calls(), goal.calls(), strict=True)
        ]
        fit = BlockFit(blocks[place], sizes, place, model.config, calls, half=half)
        blocks[place].load_state_dict(fit.smaller(sizes).state_dict())
        own.swap(place, blocks[place])
        refitted.append(index)
        log.info("block %d refitted to what blocks %d to %d did", index, index + 1, end)
    return refitted
