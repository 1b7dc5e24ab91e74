"""Compile a model block by block while it is trained, and leave nothing of it behind.

What is compiled is each block's own ``forward``. Blocks of one shape share one graph, so that 30
blocks are compiled in the time of one; what the library does around a block (masks, hooks, the
loss in chunks) stays as it is, and so do the names of parameters. PyTorch calls this regional
compilation (its recipe "Reducing torch.compile cold start compilation time with regional
compilation").

Every shape has a graph of its own, and no kernel is chosen by how long it took: the bits then
follow from the shapes alone, wherever a killed run goes on.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from iskd.errors import UserError
from iskd.models import family_of

P = ParamSpec("P")
R = TypeVar("R")

BACKEND = "inductor"
"""What compiles: torch's own."""

# Kinds of blocks times sizes of a batch's parts times models (of student and teacher). All count
# as one function, and torch gives up silently on a ninth.
_MOST_GRAPHS = 512


class Fusable(Generic[P, R]):
    """A function of tensors that is compiled as long as blocks are, and plain otherwise.

    Its arithmetic entry by entry then goes through the memory once. It must not depend on anything
    but its arguments.

    Args:
        function: the function.
    """

    every: ClassVar[list["Fusable[Any, Any]"]] = []

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = self.chosen = function
        self.every.append(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, in the form that is chosen."""
        return self.chosen(*args, **kwargs)


@contextmanager
def compiled_blocks(models: Iterable[PreTrainedModel | None]) -> Iterator[None]:
    """Have the blocks of some models run compiled as long as the context is open.

    Parameters, state dicts, hooks and what is saved stay as they are: what changes is an entry
    ``forward`` in a block's ``__dict__``, which goes at the end.

    Args:
        models: of a known family; None stands for one that there is not.

    Raises:
        UserError: nothing here compiles for the device.
        ValueError: a block's forward was put in another's place already (stochastic replacement).
    """
    _check_compiler()
    blocks = [b for model in models if model for b in family_of(model.config).blocks(model)]
    if any("forward" in block.__dict__ for block in blocks):
        raise ValueError("a block's forward is diverted: it cannot be compiled as well")
    import torch._dynamo
    import torch._inductor.config as inductor

    dynamo = torch._dynamo.config.patch(
        recompile_limit=_MOST_GRAPHS,
        accumulated_recompile_limit=2 * _MOST_GRAPHS,
        # DDP would have a block's graph cut where its buckets of gradients end.
        optimize_ddp=False,
    )
    with dynamo, inductor.patch(deterministic=True), _without_capturing(blocks):
        try:
            for block in blocks:
                block.__dict__["forward"] = _compiled(block.forward)
            for one in Fusable.every:
                one.chosen = _compiled(one.function)
            yield
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)
            for one in Fusable.every:
                one.chosen = one.function


def uncompiled(active: bool) -> AbstractContextManager[Any]:
    """Have compiled functions run as they are written as long as the context is open.

    Args:
        active: whether there are any; torch's compiler is imported only then.
    """
    stance = torch.compiler.set_stance("force_eager") if active else nullcontext()
    return cast("AbstractContextManager[Any]", stance)


@contextmanager
def _without_capturing(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Take the library's hooks for ``output_attentions`` off what is inside of blocks.

    They ask a variable of the thread whether anybody wants their output, which cannot be compiled
    and would cut each block's graph in parts.
    """
    inside = [module for block in blocks for module in block.modules() if module is not block]
    kept = [(module._forward_hooks, dict(module._forward_hooks)) for module in inside]
    try:
        for hooks, all_of_them in kept:
            for number, hook in all_of_them.items():
                if getattr(hook, "__module__", None) == output_capturing.__name__:
                    del hooks[number]
        yield
    finally:
        for hooks, all_of_them in kept:
            hooks.clear()
            hooks.update(all_of_them)


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    made: Callable[P, R] = torch.compile(function, dynamic=False, backend=BACKEND)
    return made


def _check_compiler() -> None:
    """Check that inductor finds what it builds with: it would end in a page of its own words.

    Raises:
        UserError: it does not.
    """
    if BACKEND != "inductor":
        return
    if torch.cuda.is_available():
        # Triton, which writes the kernels, builds what launches them.
        named = os.environ.get("CC")
        if not any(map(shutil.which, [named] if named else ["gcc", "clang"])):
            raise UserError(
                "training.compile needs a C compiler beside the GPU, and there is none (gcc or "
                "clang, or what CC names); install one, or leave compile out"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "training.compile needs a C++ compiler on a processor, and there is none (g++, or what "
            "CXX names); install one, or leave compile out"
        ) from error
