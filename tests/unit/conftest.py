"""What the unit tests share: one thread, no network, and small decoders with telling weights."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

for switch in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[switch] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("iskd", deadline=None, derandomize=True)
settings.load_profile("iskd")

VOCABULARY = 61
POSITIONS = 48

MakeModel = Callable[..., "PreTrainedModel"]


@pytest.fixture(scope="session")
def tiny_model() -> MakeModel:
    """Give a function that builds a small decoder: family, changed blocks, seed.

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
        blocks: int = 3,
        heads: int = 4,
        width: int = 32,
        dropout: float = 0.0,
        seed: int = 0,
        **changes: Any,
    ) -> "PreTrainedModel":
        config = scratch_config(
            family,
            {"blocks": blocks, "width": width, "heads": heads, "mlp": None},
            vocabulary=VOCABULARY,
            positions=POSITIONS,
            end_token=0,
            dropout=dropout,
        )
        for name, value in changes.items():
            setattr(config, name, value)
        for index, sizes in (compact or {}).items():
            config = compact_config(config, [index], sizes)
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
