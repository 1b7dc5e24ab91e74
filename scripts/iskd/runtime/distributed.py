"""Communication between the processes of one job through torch.distributed, one on each GPU.

``iskd.runtime.launch`` starts them. A process that was not started by it is alone: it talks to
nobody, and what stands here does nothing.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

from iskd.errors import UserError

PARALLEL = "ISKD_PARALLEL"
"""Environment variable: ``ddp`` or ``fsdp``, how the processes share the work."""

# How long the others wait for one that is slow, such as the first while it writes a large state.
# A process that has died is noticed at once, by those it talks to and by torchrun.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The processes that train together: this one's number, how many there are, and how.

    ``parallel`` is ``ddp`` or ``fsdp``, and ``none`` for a process that is alone.
    """

    rank: int
    size: int
    parallel: str

    @property
    def first(self) -> bool:
        """Whether this process writes the files and decides when to save."""
        return self.rank == 0


def world() -> World:
    """Say which of how many processes this one is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return World(0, 1, "none")
    return World(
        distributed.get_rank(), distributed.get_world_size(), os.environ.get(PARALLEL, "ddp")
    )


def join(parallel: str) -> None:
    """Meet the other processes that torchrun has started, and take a GPU of one's own.

    Numbers that decide something go over gloo, so that they wait for no GPU; gradients over NCCL.

    Args:
        parallel: ``ddp`` or ``fsdp``.

    Raises:
        UserError: there are fewer GPUs than processes. Without any GPU, processors do the work.
    """
    os.environ[PARALLEL] = parallel
    backend = "gloo"
    if torch.cuda.is_available():
        size, found = int(os.environ["WORLD_SIZE"]), torch.cuda.device_count()
        if found < size:
            raise UserError(
                f"a training of this teacher takes {size} GPUs (its key gpus) and {found} can be "
                f"seen here; have more of them allocated, or lower gpus"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=_PATIENCE)


def largest(values: Sequence[int]) -> list[int]:
    """Give, place by place, the largest number that any process has; all must ask."""
    if world().size == 1:
        return list(values)
    agreed = torch.tensor(values)
    distributed.all_reduce(agreed, distributed.ReduceOp.MAX)
    return [int(value) for value in agreed]


def first_says(value: int) -> int:
    """Give the first process's number to all."""
    if world().size == 1:
        return value
    shared = torch.tensor([value])
    distributed.broadcast(shared, src=0)
    return int(shared)


def mean(value: torch.Tensor) -> torch.Tensor:
    """Give the mean over the processes, of the same shape."""
    size = world().size
    if size == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / size


def batch_mean(values: torch.Tensor, counted: int) -> torch.Tensor:
    """Give the mean over a whole batch, of which each process holds a part; a scalar.

    Args:
        values: of this part's sequences, along the first axis.
        counted: how many of them are the batch's.
    """
    if world().size == 1:
        return values.mean()
    part = values[:counted]
    sums = torch.stack([part.sum(dtype=torch.float64), part.new_tensor(part.numel()).double()])
    distributed.all_reduce(sums)
    return (sums[0] / sums[1]).to(values.dtype)


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    largest([0])


def check_alike(model: nn.Module) -> None:
    """Check that all processes hold the same model, to the bit.

    Each has made it by itself, from the same files and seeds. Wrapping it would hide a difference:
    the first process's weights replace all others'.

    Raises:
        RuntimeError: they do not.
    """
    if world().size == 1:
        return
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
    found = [torch.empty_like(own) for _ in range(world().size)]
    distributed.all_gather(found, own)
    others = [rank for rank, other in enumerate(found) if not torch.equal(other, found[0])]
    if others:
        raise RuntimeError(
            f"process {others[0]} starts from another model than process 0: their devices or "
            f"libraries compute differently; train this model with gpus: 1"
        )


def share(sequences: int, world: World) -> slice:
    """Say which sequences of a batch are this process's.

    Args:
        sequences: how many the batch has.
        world: who asks.

    Returns:
        its part, as even as possible: empty where there are fewer sequences than processes
    """
    whole, rest = divmod(sequences, world.size)
    start = world.rank * whole + min(world.rank, rest)
    return slice(start, start + whole + (world.rank < rest))
