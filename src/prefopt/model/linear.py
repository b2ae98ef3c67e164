"""Linear layers in float32 on processors where oneDNN's products are faster than torch's own (MKL's, which on AMD run at half the rate).

    y = x W' + b,     dx = dy W,     dW = dy' x,     db = the sum of dy over its rows

Which is faster is measured once, when the first large product is wanted; `torch.nn.functional.linear` does the rest, and is the oracle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

WORK = 1 << 22
"""Multiplications of a product that outweigh the cost of the call."""
CLEARLY = 1.5
"""How many times faster oneDNN must be: a small gain may be found one time and not the next, and last bits differ."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W' + b of x [..., K], W [N, K], b [N] or None; [..., N]."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() * weight.shape[0] < WORK or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    if gain() < CLEARLY:
        return F.linear(x, weight, bias)
    out: torch.Tensor = _Linear.apply(x, weight, bias)
    return out


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` by way of `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `linear`."""
        return linear(x, self.weight, self.bias)


def quicken(model: torch.nn.Module) -> None:
    """Let the model's plain linear layers compute by `linear`; weights, names and what is saved stay as they are."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Linear


@lru_cache(maxsize=1)
def gain() -> float:
    """How many times less CPU time oneDNN takes for a product in float32; 0 where this build of torch has none of its products.

    On one thread: several that wait for each other on a busy machine would be timed as work.
    """
    x, weight, threads = torch.ones(512, 256), torch.ones(256, 256), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _seconds(lambda: F.linear(x, weight)) / _seconds(lambda: _product(x, weight, None))
    except (RuntimeError, AttributeError):
        return 0.0
    finally:
        torch.set_num_threads(threads)


def _seconds(product: Callable[[], Any]) -> float:
    """CPU time of the best of some calls, on which other work on the machine has little influence."""
    best = float("inf")
    for _ in range(20):
        started = time.process_time()
        product()
        best = min(best, time.process_time() - started)
    return best


@torch.no_grad()
def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        d_out = gradients[0].contiguous()
        rows = d_out.flatten(0, -2)
        return (
            linear(d_out, weight.t()) if ctx.needs_input_grad[0] else None,
            linear(rows.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )
