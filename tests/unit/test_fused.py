"""While a model only reads, its GELU is one operation; afterwards it is what it was."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.activations import NewGELUActivation

from iskd.evaluation import fused
from iskd.evaluation.fused import fused_gelu, has_linear_gelu
from tests.unit.conftest import MakeModel

TOKENS = torch.tensor([[1, 2, 3, 4]])


def _kinds(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("operation", [True, False], ids=["one operation", "plain"])
@pytest.mark.parametrize("family", ["gpt2", "phi"])
@torch.no_grad()
def test_logits_differ_by_rounding_only(
    family: str, operation: bool, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not operation:
        monkeypatch.setattr(fused, "has_linear_gelu", lambda: False)
    model = tiny_model(family).eval()
    before = _kinds(model)
    assert NewGELUActivation in before
    wanted = model(TOKENS).logits
    with fused_gelu(model):
        assert NewGELUActivation not in _kinds(model)
        assert (nn.Identity in _kinds(model)) == operation
        found = model(TOKENS).logits
    assert found == pytest.approx(wanted, abs=1e-5)
    assert _kinds(model) == before
    assert model(TOKENS).logits.equal(wanted)


@pytest.mark.parametrize("family", ["gpt2", "phi"])
def test_a_processor_computes_gelu_with_the_product_before_it(
    family: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(family).eval()
    with fused_gelu(model):
        assert nn.GELU not in _kinds(model)
        assert nn.Identity in _kinds(model)


@pytest.fixture
def untried() -> Iterator[None]:
    """What was found out of oneDNN's operation is forgotten, before and after."""
    has_linear_gelu.cache_clear()
    yield
    has_linear_gelu.cache_clear()


def _gone(*_: object) -> torch.Tensor:
    raise AttributeError("no such operation")


def _changed(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return functional.gelu(functional.linear(hidden, weight, bias))


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("operation", [_gone, _changed])
def test_an_operation_that_is_not_there_or_computes_otherwise_is_not_used(
    operation: object, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_linear_gelu()
    has_linear_gelu.cache_clear()
    monkeypatch.setattr(fused, "_linear_gelu", operation)
    assert not has_linear_gelu()
    model = tiny_model("gpt2").eval()
    with fused_gelu(model):
        assert nn.Identity not in _kinds(model)
        assert nn.GELU in _kinds(model)


@torch.no_grad()
def test_a_model_in_half_precision_keeps_its_products(tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2").eval().to(torch.bfloat16)
    wanted = model(TOKENS).logits
    with fused_gelu(model):
        assert nn.GELU in _kinds(model)
        assert nn.Identity not in _kinds(model)
        assert model(TOKENS).logits.float() == pytest.approx(wanted.float(), abs=0.1)


@torch.no_grad()
def test_large_inputs_are_computed_as_exactly(tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2").eval()
    mlp = model.transformer.h[0].mlp
    hidden = 100 * torch.randn(3, 5, mlp.c_fc.weight.shape[0])
    wanted = mlp.act(mlp.c_fc(hidden))
    with fused_gelu(model):
        found = mlp.act(mlp.c_fc(hidden))
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_an_error_inside_leaves_the_model_as_it_was(tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2")
    before = _kinds(model)
    with pytest.raises(KeyError), fused_gelu(model):
        raise KeyError
    assert _kinds(model) == before
