"""How a new block starts.

``paper``: as the published code does for the family. ``zero_up``: what writes into the stream is
zero, so the block starts as a plain skip. ``pca``: projections along the principal components of
the teacher's activations. ``least_squares``: the projections that fit the replaced block's output
best. ``teacher`` (narrow blocks): the teacher's strongest heads and neurons.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedConfig

from iskd.errors import UserError
from iskd.models.activations import BlockCall, first_tensor
from iskd.models.families import family_of
from iskd.models.modeling.iskd_blocks import CompactBlock, NarrowSizes
from iskd.models.units import block_units, kept_state, strongest
from iskd.settings import Initialisation

log = logging.getLogger("iskd.models")

NEEDS_ACTIVATIONS = ("pca", "least_squares")
# Phi's published block leaves its projections to the family's default; GPT-2's are Xavier's.
_PROJECTIONS_AS_FAMILY = ("phi",)
# The activation after the down-projection stays open for all but the lowest 2 % of a normal
# distribution, so that what the projection found gets through.
_OPEN = 2.0
# Share of the mean variance that is added to the diagonal: features may be nearly dependent.
_RIDGE = 1e-4


def initialise_compact(
    block: CompactBlock,
    kind: Initialisation,
    config: PreTrainedConfig,
    *,
    calls: Sequence[BlockCall] = (),
) -> None:
    """Start a compact block that the library has just drawn, in place.

    Args:
        block: fresh, with the family's default weights.
        kind: one of the kinds above, but ``teacher``.
        config: of the model around it.
        calls: what the teacher's block was handed and gave; for ``pca`` and ``least_squares``.

    Raises:
        UserError: ``teacher``, which a block with projections cannot have, or a fitted kind for a
            block wider than the model.
    """
    if kind in NEEDS_ACTIVATIONS and block.down.out_features > config.hidden_size:
        raise UserError(
            f"initialisation {kind}: a block {block.down.out_features} wide reads more than the "
            f"{config.hidden_size} directions there are; lower its width"
        )
    if kind == "teacher":
        raise UserError(
            "initialisation teacher keeps heads and neurons of the block: it needs recipe narrow"
        )
    if family_of(config).name not in _PROJECTIONS_AS_FAMILY:
        for projection in (block.down, block.up):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
    if kind == "zero_up":
        nn.init.zeros_(block.up.weight)
        nn.init.zeros_(block.up.bias)
    elif kind in NEEDS_ACTIVATIONS:
        _fit_projections(block, calls, refit=kind == "least_squares")


@torch.no_grad()
def _fit_projections(block: CompactBlock, calls: Sequence[BlockCall], *, refit: bool) -> None:
    width = block.down.weight.shape[0]
    inputs = torch.cat([call.hidden.flatten(0, 1) for call in calls]).double()
    written = torch.cat([(c.output - c.hidden).flatten(0, 1) for c in calls]).double()
    mean, written_mean = inputs.mean(0), written.mean(0)
    centred, response = inputs - mean, written - written_mean
    if refit:
        # Reduced-rank regression: the directions of the input that tell most of the output.
        fitted = _ridge(centred, response)
        components = torch.linalg.eigh(fitted.T @ (centred.T @ centred) @ fitted).eigenvectors
        down = fitted @ components[:, -width:]
    else:
        down = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -width:]
    # Largest first, and of unit variance.
    down = down.flip(1)
    spread = (centred @ down).std(dim=0).clamp(min=1e-12)
    down = (down / spread).T
    block.down.weight.copy_(down)
    block.down.bias.copy_(_OPEN - down @ mean)
    with _evaluating(block):
        seen = [block.features(c.hidden, *c.args, **c.kwargs).flatten(0, 1) for c in calls]
    features = torch.cat(seen).double()
    feature_mean = features.mean(0)
    features = features - feature_mean
    if refit:
        up = _ridge(features, response).T
    else:
        axes = torch.linalg.eigh(response.T @ response / len(response))
        scaled = axes.eigenvectors * axes.eigenvalues.clamp(min=0).sqrt()
        up = scaled[:, -width:].flip(1)
        guess = features @ up.T
        # How much of it to write at first: the one factor that fits best.
        up = up * ((guess * response).sum() / guess.square().sum().clamp(min=1e-12))
    block.up.weight.copy_(up)
    block.up.bias.copy_(written_mean - up @ feature_mean)


@contextmanager
def _evaluating(block: nn.Module) -> Iterator[None]:
    """Switch dropout off: a fit to it would be a fit to noise."""
    was_training = block.training
    block.eval()
    try:
        yield
    finally:
        block.train(was_training)


def _ridge(features: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Solve features @ solution = response, (samples, n) and (samples, m) -> (n, m)."""
    samples, width = features.shape
    if samples < 2 * width:
        log.warning(
            "the start is fitted to %d positions, and %d numbers explain each: raise calibration",
            samples,
            width,
        )
    gram = features.T @ features
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + 1e-12)
    return torch.linalg.solve(gram, features.T @ response)


@torch.no_grad()
def initialise_narrow(
    block: nn.Module,
    sizes: NarrowSizes,
    kind: Initialisation,
    config: PreTrainedConfig,
    *,
    replaced: nn.Module,
    calls: Sequence[BlockCall] = (),
) -> None:
    """Start a narrow block that the library has just drawn, in place.

    Args:
        block: fresh, with the family's default weights.
        sizes: its sizes.
        kind: one of the kinds above, but ``pca``.
        config: of the model around it.
        replaced: the whole block it stands for.
        calls: as for :func:`initialise_compact`.

    Raises:
        UserError: ``pca``, which needs projections.
    """
    adapter = family_of(config).adapter
    if kind == "pca":
        raise UserError("initialisation pca sets projections: recipe narrow has none; use teacher")
    if kind == "zero_up":
        for writer in adapter.writers:
            for parameter in block.get_submodule(writer).parameters():
                nn.init.zeros_(parameter)
    if kind not in ("teacher", "least_squares"):
        return
    kept = strongest(block_units(replaced, 0, config), sizes, adapter.sharing_heads(config))
    block.load_state_dict(kept_state(replaced, kept, config))
    if kind == "least_squares":
        _refit_last_writer(block, adapter.writers[1], calls)


def _refit_last_writer(block: nn.Module, name: str, calls: Sequence[BlockCall]) -> None:
    """Have the MLP's last projection make up for what the missing units wrote."""
    writer = block.get_submodule(name)
    assert isinstance(writer.weight, torch.Tensor)  # noqa: S101 - narrows the type
    weight, bias = writer.weight, writer.bias
    seen: list[torch.Tensor] = []
    handle = writer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    missing = []
    with _evaluating(block):
        for call in calls:
            given = first_tensor(block(call.hidden, *call.args, **call.kwargs))
            missing.append((call.output - given).flatten(0, 1))
    handle.remove()
    features, response = torch.cat(seen).double(), torch.cat(missing).double()
    if isinstance(bias, torch.Tensor):
        feature_mean, response_mean = features.mean(0), response.mean(0)
        change = _ridge(features - feature_mean, response - response_mean)
        bias.add_(response_mean - feature_mean @ change)
    else:
        # Nothing else could take up the means, so the weight is fitted to them too.
        change = _ridge(features, response)
    # A linear layer stores (out, in), GPT-2's Conv1D (in, out).
    weight.add_(change.T if isinstance(writer, nn.Linear) else change)
