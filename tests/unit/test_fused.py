"""While a model only reads, its GELU is one operation; afterwards it is what it was."""

import pytest
import torch
from torch import nn
from transformers.activations import NewGELUActivation

from iskd.evaluation.fused import fused_gelu
from tests.unit.conftest import MakeModel

TOKENS = torch.tensor([[1, 2, 3, 4]])


def _kinds(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("family", ["gpt2", "phi"])
@torch.no_grad()
def test_logits_differ_by_rounding_only(family: str, tiny_model: MakeModel) -> None:
    model = tiny_model(family).eval()
    before = _kinds(model)
    assert NewGELUActivation in before
    wanted = model(TOKENS).logits
    with fused_gelu(model):
        assert NewGELUActivation not in _kinds(model)
        found = model(TOKENS).logits
    assert found == pytest.approx(wanted, abs=1e-5)
    assert _kinds(model) == before
    assert model(TOKENS).logits.equal(wanted)


def test_an_error_inside_leaves_the_model_as_it_was(tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2")
    before = _kinds(model)
    with pytest.raises(KeyError), fused_gelu(model):
        raise KeyError
    assert _kinds(model) == before
