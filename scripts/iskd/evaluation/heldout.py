"""Cross-entropy of a language model on text it was not trained on."""

from typing import TYPE_CHECKING

import torch

from iskd.errors import UserError
from iskd.evaluation.answers import scoring
from iskd.evaluation.metric import Metric
from iskd.models.modeling.iskd_blocks import is_published
from iskd.training.state import WorkFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def heldout_loss(
    model: "PreTrainedModel",
    blocks: torch.Tensor,
    *,
    batch_size: int,
    work: WorkFolder | None = None,
) -> Metric:
    """Measure the mean next-token cross-entropy over blocks of tokens.

    In each block the first token is context only: L - 1 predictions per block.

    Args:
        model: A causal language model; left in the mode (train or eval) it came in.
        blocks: Token ids, integer, shape (N, L) with L >= 2; on any device.
        batch_size: Blocks per forward pass.
        work: Where the blocks' losses are kept, if the evaluation is to survive being killed: it
            goes on from them and ends with the same bits.

    Returns:
        The mean in nats per token. Its standard error is the sample standard deviation of the
        blocks' means over sqrt(N): tokens within a block are no independent draws. n is N.
        Logits are taken to float32 for the softmax, sums to float64.

    Raises:
        UserError: There is no block, or the batch size is below 1.
        ValueError: The blocks are not an integer matrix with at least two columns.
        Interrupted: The process was asked to stop; what was scored is kept.
    """
    if blocks.ndim != 2 or blocks.is_floating_point() or blocks.shape[1] < 2:
        raise ValueError(f"blocks must be integer (N, L >= 2), got {blocks.dtype} {blocks.shape}")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: it must be at least 1")
    count = blocks.shape[0]
    if count == 0:
        raise UserError("held-out text has no full block: give more text or shorten the block")
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), scoring(work, model.device) as score:
            losses = score(
                blocks.split(batch_size),
                lambda batch: _block_means(model, batch.to(model.device)).tolist(),
                blocks.cpu().contiguous().numpy().tobytes(),
            )
    finally:
        model.train(was_training)
    means = torch.tensor(losses, dtype=torch.float64)
    stderr = float(means.std(correction=1)) / count**0.5 if count > 1 else None
    return Metric(value=float(means.mean()), stderr=stderr, n=count)


def _block_means(model: "PreTrainedModel", batch: torch.Tensor) -> torch.Tensor:
    """Return each block's mean loss in nats per token: (B, L) -> float64 (B,), on the CPU."""
    # The published code hands over a mask; any other model is the same with and without one.
    given = {"attention_mask": torch.ones_like(batch)} if is_published(model.config) else {}
    logits = model(input_ids=batch, use_cache=False, **given).logits[:, :-1].float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch[:, 1:].long().flatten(), reduction="none"
    )
    # To the CPU before float64: not every accelerator has that type.
    return losses.view(batch.shape[0], -1).cpu().double().mean(dim=1)
