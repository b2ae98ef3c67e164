"""RMS norms against those of transformers: values to the bit, gradients no further from the exact ones, models that use them."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch

from prefopt.model.norm import KINDS, quicken_norms, rms_norm
from tests.tiny import assert_alike, tiny_model


def given(dtype: torch.dtype = torch.float32, size: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(1, 37, size, generator=generator).to(dtype) for _ in range(2))
    return x, (1 + 0.1 * torch.randn(size, generator=generator)).to(dtype), upstream


def gradients(function: Any, x: torch.Tensor, weight: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    return torch.autograd.grad(function(*leaves), leaves, upstream)


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The formula in the dtype of x."""
    return weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_values_and_gradients_are_those_of_transformers(name: str, dtype: torch.dtype) -> None:
    family = name.removesuffix("RMSNorm").lower()
    norm = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name)(24, 1e-6).to(dtype)
    x, weight, upstream = given(dtype)
    norm.weight.data = weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), norm(x), rtol=1e-6 if dtype == torch.float32 else 2**-8, atol=1e-6)

    def theirs(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    found = gradients(lambda x, weight: rms_norm(x, weight, 1e-6), x, weight, upstream)
    wanted = gradients(exact, x.double(), weight.double(), upstream.double())
    for mine, other, true in zip(found, gradients(theirs, x, weight, upstream), wanted, strict=True):
        assert (mine.double() - true).norm() <= 1.05 * (other.double() - true).norm() + 1e-9 * true.norm()


def test_by_hand() -> None:
    """x = (3, 4): the mean square is 12.5, the norm (3, 4) / sqrt(12.5)."""
    got = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(got, torch.tensor([0.8485281, 2.2627417]))


def test_a_gradient_along_x_is_none() -> None:
    """Without epsilon the length of x does not matter."""
    x, weight, upstream = given()
    d_x, _ = gradients(lambda x, weight: rms_norm(x, weight, 0.0), x, weight, upstream)
    assert float((d_x * x).sum(-1).abs().max()) < 1e-5


def test_frozen_weights_and_inputs() -> None:
    x, weight, upstream = given()
    wants = gradients(exact, x, weight, upstream)
    for place in (0, 1):
        leaves = [leaf.clone().requires_grad_(i == place) for i, leaf in enumerate((x, weight))]
        rms_norm(*leaves, 1e-6).backward(upstream)
        torch.testing.assert_close(leaves[place].grad, wants[place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_quickened_model_is_the_same_model(family: str) -> None:
    plain = tiny_model(family)
    model = copy.deepcopy(plain)
    quicken_norms(model)
    quicken_norms(model)
    twin = copy.deepcopy(model)
    assert type(twin.model.norm) is not type(plain.model.norm)
    assert type(twin.model.norm).__mro__[1] is type(plain.model.norm)
    assert_alike(plain, twin)
