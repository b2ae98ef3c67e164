"""Gated activations against those of transformers: values and gradients to the bit, less kept, models that use them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from prefopt.model.mlp import gated, quicken_mlps
from tests.tiny import assert_alike, tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_plain_form(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gate, up, upstream = (torch.randn(1, 37, 24, generator=generator).to(dtype) for _ in range(3))
    results = []
    for form in (gated, lambda gate, up: F.silu(gate) * up):
        leaves = [gate.clone().requires_grad_(), up.clone().requires_grad_()]
        out = form(*leaves)
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for mine, plain in zip(*results, strict=True):
        assert torch.equal(mine, plain)


def test_by_hand() -> None:
    """silu(ln 3) = ln 3 * 3/4; its slope there is 3/4 + ln 3 * 3/16."""
    log3 = torch.log(torch.tensor(3.0)).requires_grad_()
    out = gated(log3, torch.tensor(2.0))
    torch.testing.assert_close(out.detach(), torch.tensor(1.6479184))
    (slope,) = torch.autograd.grad(out, log3)
    torch.testing.assert_close(slope, torch.tensor(2 * (0.75 + 1.0986123 * 0.1875)))


def test_only_gate_and_up_are_kept() -> None:
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    gate, up = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gated(gate, up)
    assert sorted(kept) == sorted((gate.data_ptr(), up.data_ptr()))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_quickened_model_is_the_same_model(family: str) -> None:
    plain = tiny_model(family)
    model = copy.deepcopy(plain)
    quicken_mlps(model)
    quicken_mlps(model)
    twin = copy.deepcopy(model)
    kinds = [type(m.model.layers[0].mlp) for m in (plain, twin)]
    assert kinds[1].__mro__[1] is kinds[0]
    assert_alike(plain, twin)


def test_another_activation_is_left_alone() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.config.hidden_act = "gelu"
    before = type(model.model.layers[0].mlp)
    quicken_mlps(model)
    assert type(model.model.layers[0].mlp) is before
