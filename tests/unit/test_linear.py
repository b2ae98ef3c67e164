"""Products by oneDNN against torch's own: values, gradients, what is left to torch, and models that use them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from prefopt.model import linear as quick
from tests.tiny import assert_alike, tiny_model


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """By oneDNN, whatever is faster here and however small the product."""
    if quick.gain() == 0:
        pytest.skip("this build of torch has no products of oneDNN")
    monkeypatch.setattr(quick, "gain", lambda: 9.0)
    monkeypatch.setattr(quick, "WORK", 0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(37, 24), (1, 37, 24), (2, 5, 24)])
def test_values_and_gradients_are_those_of_torch(always: None, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(shape), torch.randn(40, 24), *([torch.randn(40)] if bias else [])]
    found = []
    for product in (quick.linear, F.linear):
        mine = [leaf.clone().requires_grad_() for leaf in leaves]
        out = product(*mine)
        found.append((out, *torch.autograd.grad(out.square().sum(), mine)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_an_expanded_gradient_and_frozen_weights(always: None) -> None:
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(5, 8)
    quick.linear(x, weight).sum().backward()  # its gradient is one number seen as a matrix
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(6, 8))


def test_other_dtypes_and_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "gain", lambda: pytest.fail("it was asked whether oneDNN is faster"))
    for dtype, rows in ((torch.float64, 4096), (torch.bfloat16, 4096), (torch.float32, 1)):
        x, weight = torch.randn(rows, 64).to(dtype), torch.randn(64, 64).to(dtype)
        assert torch.equal(quick.linear(x, weight), F.linear(x, weight))


def test_without_a_clear_gain_torch_computes(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "gain", lambda: 1.2)
    monkeypatch.setattr(quick, "_product", lambda *_: pytest.fail("oneDNN was used"))
    quick.linear(torch.randn(4, 4), torch.randn(4, 4))


def test_a_quickened_model_is_the_same_model(always: None) -> None:
    plain = tiny_model("llama")
    model = copy.deepcopy(plain)
    quick.quicken(model)
    twin = copy.deepcopy(model)
    assert type(twin.model.layers[0].mlp.up_proj) is quick.Linear
    assert_alike(plain, twin)


def test_measuring_leaves_the_threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "_product", lambda *_: torch.ops.no_such.product)  # an AttributeError, as on a build without it
    before = torch.get_num_threads()
    assert quick.gain.__wrapped__() == 0.0
    assert torch.get_num_threads() == before
