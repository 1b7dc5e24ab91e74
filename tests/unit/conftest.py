"""What the unit tests share: one thread, no network, and small decoders with telling weights."""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import settings

from iskd.config.schema import FamilyName

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from iskd.models.recipes import Recipe

for switch in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[switch] = "1"
# A pool of processes, which torch's compiler would start, takes longer than it saves.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("iskd", deadline=None, derandomize=True)
settings.load_profile("iskd")

VOCABULARY = 61
POSITIONS = 48

MakeModel = Callable[..., "PreTrainedModel"]

FAMILIES = list(get_args(FamilyName))
# What sets a family apart, so that no test passes because a model happens to be plain: shared keys
# and values, a window shorter than the text, layers of two types, a head size of its own.
_WINDOW = 6
_TWO_TYPES = {"use_sliding_window": True, "sliding_window": _WINDOW}
_SETTINGS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": _WINDOW},
    "qwen2": _TWO_TYPES,
    "qwen3": {**_TWO_TYPES, "head_dim": 8},
}
_TYPES = {
    "qwen2": ("sliding_attention", "full_attention"),
    "qwen3": ("full_attention", "sliding_attention"),
}
_HEADS = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), (8, 4))
# Heads that share a key and a value: what a narrow block keeps is a multiple of this.
SHARE = {family: heads // shared for family, (heads, shared) in _HEADS.items()}


@pytest.fixture(scope="session")
def tiny_model() -> MakeModel:
    """Give a function that builds a small decoder: family, changed blocks, seed.

    Changed blocks are named with their sizes (``compact``, ``narrow``) or left to a ``recipe``
    for the blocks ``replaced``, and a ``reduction``. A key of the config that is
    named goes before the settings above.

    Its weights are much larger than fresh ones, and no bias is zero: attention is far from
    uniform, and a weight that is lost or misplaced shows in the logits.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from iskd.models import CompactSizes, NarrowSizes, compact_config, narrow_config
    from iskd.models.scratch import scratch_config

    torch.set_num_threads(1)

    def make(
        family: str,
        *,
        compact: Mapping[int, CompactSizes] | None = None,
        narrow: Mapping[int, NarrowSizes] | None = None,
        recipe: "Recipe | None" = None,
        replaced: Sequence[int] = (),
        reduction: float | None = None,
        blocks: int = 3,
        heads: int | None = None,
        kv_heads: int | None = None,
        width: int = 32,
        dropout: float = 0.0,
        seed: int = 0,
        **changes: Any,
    ) -> "PreTrainedModel":
        usual, shared = _HEADS.get(family, (4, None))
        if heads is None:
            heads, kv_heads = usual, kv_heads or shared
        config = scratch_config(
            family,
            {
                "blocks": blocks,
                "width": width,
                "heads": heads,
                "kv_heads": kv_heads,
                "mlp": None,
            },
            vocabulary=VOCABULARY,
            positions=POSITIONS,
            end_token=0,
            dropout=dropout,
        )
        if family in _TYPES:
            config.layer_types = list(islice(cycle(_TYPES[family]), blocks))
        for name, value in {**_SETTINGS.get(family, {}), **changes}.items():
            setattr(config, name, value)
        for index, sizes in (compact or {}).items():
            config = compact_config(config, [index], sizes)
        if recipe is not None:
            config = compact_config(config, replaced, recipe=recipe, reduction=reduction)
        if narrow:
            config = narrow_config(config, narrow)
        model = AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.mul_(1.0 if parameter.ndim == 1 else 0.0).add_(noise * 0.25)
        return model.eval()

    return make


class Clock:
    """A clock that a test puts forward."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now
